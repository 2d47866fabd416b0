"""LDA-AQU: adaptive query-guided upsampling via local deformable attention."""

import math

from torch import Tensor

from ..errors import InputError
from .base import check_odd, divide
from .lau import LAU
from .offset_network import OffsetNetwork
from .registry import UPSAMPLER_REGISTRY


@UPSAMPLER_REGISTRY.register()
class LDAAQU(LAU):
    """Each output pixel's query chooses where around it to look, and how to weigh what it sees.

    Du et al., "LDA-AQU: Adaptive Query-guided Upsampling via Local Deformable Attention", ACM MM
    2024. Parameter names and shapes are those of the published implementation. 39,410 parameters
    at 256 channels; the small variant LDA-AQU* is :class:`LDAAQUStar`.

    Any size of output, empty batches and 1 x 1 maps included. The output has the input's dtype;
    offsets, coordinates and softmax are in float32 at least.

    Args:
        in_channels: C.
        scale_factor: output size over input size, where the call names no ``output_size``.
        reduction: r; queries and keys have d = C / r channels.
        num_heads: attention heads; divides d.
        num_groups: groups of channels with offsets of their own; divides d.
        kernel_size: k_u, odd; k_u² points are sampled for each output pixel.
        offset_kernel_size: k_e, odd; kernel of the convolution that predicts the offsets.
        offset_range: theta, the largest offset, in output pixels.
        position_bias: whether the keys have a learned bias for each point.
        init: "window" or "bilinear": see :class:`LAU`.
        backend: what computes it: see :func:`lda_aqu.ops.local_deformable_attention`.

    Raises:
        InputError: values that do not fit one another, or an unknown backend.
    """

    config_node = "LDA_AQU"

    def __init__(
        self,
        in_channels: int,
        scale_factor: float = 2,
        reduction: int = 4,
        num_heads: int = 1,
        num_groups: int = 2,
        kernel_size: int = 3,
        offset_kernel_size: int = 3,
        offset_range: float = 11.0,
        position_bias: bool = True,
        init: str = "window",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            in_channels,
            scale_factor,
            reduction,
            num_heads,
            kernel_size,
            position_bias,
            init,
            backend,
        )
        group_channels = divide(
            f"in_channels / reduction = {in_channels} / {reduction}",
            in_channels // reduction,
            "num_groups",
            num_groups,
        )
        check_odd(offset_kernel_size=offset_kernel_size)
        if not (math.isfinite(offset_range) and offset_range >= 0):
            raise InputError(f"offset_range must be finite and at least 0, got {offset_range}")
        self.conv_offset = OffsetNetwork(
            group_channels, num_groups, self.num_points, offset_kernel_size, offset_range, backend
        )

    def reset_parameters(self) -> None:
        """Set the initial values: no offsets, so that training starts from a regular window."""
        super().reset_parameters()
        self.conv_offset.reset_parameters()

    def _find_offsets(
        self, query: Tensor, output_size: tuple[int, int] | None
    ) -> tuple[Tensor, Tensor]:
        return self.conv_offset(query, output_size)


@UPSAMPLER_REGISTRY.register()
class LDAAQUStar(LDAAQU):
    """LDA-AQU*, the paper's small variant: :class:`LDAAQU` with ``reduction=16``.

    10,250 parameters at 256 channels.
    """

    config_node = ""

    def __init__(self, in_channels: int, scale_factor: float = 2) -> None:
        super().__init__(in_channels, scale_factor, reduction=16)
