"""LDA-AQU: adaptive query-guided upsampling via local deformable attention."""

import math

from torch import Tensor, nn

from ..errors import InputError
from ..ops import resize_and_predict_offsets
from .base import check_odd
from .channel_layer_norm import ChannelLayerNorm
from .lau import LAU, divide
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
        group_depth = divide(
            f"in_channels / reduction = {in_channels} / {reduction}",
            in_channels // reduction,
            "num_groups",
            num_groups,
        )
        check_odd(offset_kernel_size=offset_kernel_size)
        if not (math.isfinite(offset_range) and offset_range >= 0):
            raise InputError(f"offset_range must be finite and at least 0, got {offset_range}")
        self.num_groups = num_groups
        self.offset_range = offset_range
        self.conv_offset = nn.Sequential(
            nn.Conv2d(group_depth, group_depth, 3, padding=1, groups=group_depth, bias=False),
            ChannelLayerNorm(group_depth),
            nn.GELU(),
            nn.Conv2d(
                group_depth,
                2 * self.num_points,
                offset_kernel_size,
                padding=offset_kernel_size // 2,
            ),
        )
        LDAAQU._reset_offsets(self)

    def reset_parameters(self) -> None:
        """Set the initial values: no offsets, so that training starts from a regular window."""
        super().reset_parameters()
        self._reset_offsets()

    def _reset_offsets(self) -> None:
        nn.init.xavier_uniform_(self.conv_offset[0].weight)
        self.conv_offset[1].norm.reset_parameters()
        nn.init.zeros_(self.conv_offset[3].weight)
        nn.init.zeros_(self.conv_offset[3].bias)

    def _resize_query(self, query: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(N, d, H, W) to (N, d, H', W') and (N, g, k_u², 2, H', W'): (dy, dx) in output pixels."""
        return resize_and_predict_offsets(query, size, *self._offset_network(), self.backend)

    def _offset_network(self) -> tuple[Tensor | int | float, ...]:
        """What the operators are told of the network."""
        depthwise, layer_norm, _, convolution = self.conv_offset
        return (
            depthwise.weight,
            layer_norm.norm.weight,
            layer_norm.norm.bias,
            convolution.weight,
            convolution.bias,
            self.num_groups,
            self.offset_range,
        )


@UPSAMPLER_REGISTRY.register()
class LDAAQUStar(LDAAQU):
    """LDA-AQU*, the paper's small variant: :class:`LDAAQU` with ``reduction=16``.

    10,250 parameters at 256 channels.
    """

    config_node = ""

    def __init__(self, in_channels: int, scale_factor: float = 2) -> None:
        super().__init__(in_channels, scale_factor, reduction=16)
