"""LDA-AQU: adaptive query-guided upsampling via local deformable attention."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..ops import check_backend, local_deformable_attention, plain
from .base import Upsampler
from .registry import UPSAMPLER_REGISTRY


class Sampling(NamedTuple):
    """Where an :class:`LDAAQU` reads for each output pixel, and how it weighs what it reads."""

    offsets: Tensor
    """(N, g, k_u², 2, H', W'), (dy, dx) in output pixels."""
    positions: Tensor
    """(N, g, k_u², 2, H', W'), (y, x) in input pixels, where the offsets lead."""
    weights: Tensor
    """(N, heads, k_u², H', W'), of sum 1 over the points."""


@UPSAMPLER_REGISTRY.register()
class LDAAQU(Upsampler):
    """Each output pixel's query chooses where around it to look, and how to weigh what it sees.

    Du et al., "LDA-AQU: Adaptive Query-guided Upsampling via Local Deformable Attention", ACM MM
    2024. Parameter names and shapes are those of the published implementation. 39,410 parameters
    at 256 channels; the small variant LDA-AQU* is ``reduction=16``.

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
        backend: what computes the attention: see :func:`lda_aqu.ops.local_deformable_attention`.

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
        backend: str = "auto",
    ) -> None:
        super().__init__(in_channels, scale_factor)
        check_backend(backend)
        depth = _divide("in_channels", in_channels, "reduction", reduction)
        _divide(
            f"in_channels / reduction = {in_channels} / {reduction}", depth, "num_heads", num_heads
        )
        group_depth = _divide(
            f"in_channels / reduction = {in_channels} / {reduction}",
            depth,
            "num_groups",
            num_groups,
        )
        for name, size in (
            ("kernel_size", kernel_size),
            ("offset_kernel_size", offset_kernel_size),
        ):
            if size < 1 or size % 2 == 0:
                raise InputError(f"{name} must be odd and positive, got {size}")
        if not (math.isfinite(offset_range) and offset_range >= 0):
            raise InputError(f"offset_range must be finite and at least 0, got {offset_range}")
        self.num_heads = num_heads
        self.num_groups = num_groups
        self.num_points = kernel_size**2
        self.offset_range = offset_range
        self.backend = backend

        self.layer_norm = ChannelLayerNorm(in_channels)
        self.proj_q = nn.Conv2d(in_channels, depth, 1, bias=False)
        self.proj_k = nn.Conv2d(in_channels, depth, 1, bias=False)
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
        if position_bias:
            self.relative_position_bias_table = nn.Parameter(
                torch.empty(1, num_heads, 1, self.num_points, depth // num_heads)
            )
        else:
            self.register_parameter("relative_position_bias_table", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: no offsets, so that training starts from a regular window."""
        for convolution in (self.proj_q, self.proj_k, self.conv_offset[0]):
            nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(self.conv_offset[3].weight)
        nn.init.zeros_(self.conv_offset[3].bias)
        for norm in (self.layer_norm.norm, self.conv_offset[1].norm):
            norm.reset_parameters()
        if self.relative_position_bias_table is not None:
            nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """(N, C, H, W) to (N, C, H', W')."""
        query, key, offsets, bias = self._attention_inputs(x, output_size)
        return local_deformable_attention(
            query, key, x, offsets, bias, self.num_heads, self.backend
        )

    def sampling(self, x: Tensor, output_size: tuple[int, int] | None = None) -> Sampling:
        """The positions and weights with which :meth:`forward` upsamples (N, C, H, W)."""
        query, key, offsets, bias = self._attention_inputs(x, output_size)
        return Sampling(offsets, *plain.sampling(query, key, offsets, bias, self.num_heads))

    def _attention_inputs(
        self, x: Tensor, output_size: tuple[int, int] | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Query, key, offsets and position bias, as the operator takes them."""
        size = self.target_size(x, output_size)
        normalized = self.layer_norm(x)
        query = F.interpolate(self.proj_q(normalized), size, mode="bilinear", align_corners=True)
        bias = self.relative_position_bias_table
        return (
            query,
            self.proj_k(normalized),
            self._offsets(query),
            None if bias is None else bias[0, :, 0],
        )

    def _offsets(self, query: Tensor) -> Tensor:
        """(N, d, H', W') to (N, g, k_u², 2, H', W'), (dy, dx) in output pixels."""
        n, _, height, width = query.shape
        depthwise, norm, activation, convolution = self.conv_offset
        groups = self.num_groups
        # The network that the groups share, applied to all of them side by side: channels-last, as
        # the projections leave the query, nothing has to be moved.
        hidden = F.conv2d(
            query, depthwise.weight.repeat(groups, 1, 1, 1), padding=1, groups=query.shape[1]
        )
        hidden = activation(norm(hidden, groups))
        offsets = F.conv2d(
            hidden,
            convolution.weight.repeat(groups, 1, 1, 1),
            convolution.bias.repeat(groups),
            padding=convolution.padding,
            groups=groups,
        )
        if offsets.dtype in (torch.float16, torch.bfloat16):
            offsets = offsets.float()  # half precision has no room for fractions of a pixel
        offsets = self.offset_range * torch.tanh(offsets)
        return offsets.view(n, self.num_groups, self.num_points, 2, height, width)


class ChannelLayerNorm(nn.Module):
    """Layer normalisation over the channels of each position of (N, C, H, W)."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(num_channels)

    def forward(self, x: Tensor, num_groups: int = 1) -> Tensor:
        """Normalise (N, num_groups * num_channels, H, W) over the channels of each group."""
        grouped = x.permute(0, 2, 3, 1).unflatten(-1, (num_groups, x.shape[1] // num_groups))
        return self.norm(grouped).flatten(-2).permute(0, 3, 1, 2)


def _divide(name: str, value: int, divisor_name: str, divisor: int) -> int:
    """``value / divisor``, or an InputError that names both if it is not whole."""
    if divisor < 1 or value % divisor:
        raise InputError(f"{name} ({value}) is not a multiple of {divisor_name} ({divisor})")
    return value // divisor
