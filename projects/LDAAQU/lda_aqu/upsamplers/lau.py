"""LAU: local attention upsampling, which is LDA-AQU without deformation."""

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..ops import check_backend, local_deformable_attention, project_normalized
from ..ops.plain.attention import sampling
from .base import Upsampler, check_odd, divide
from .channel_layer_norm import ChannelLayerNorm
from .fusing import can_be_fused
from .registry import UPSAMPLER_REGISTRY

INITIALIZATIONS = ("window", "bilinear")

# What "bilinear" gives the logit of a window's middle ahead of the others: the middle then has
# 1 - 8 exp(-10), or 0.9996, of the weight of a 3 x 3 window whose pixels are else alike.
BILINEAR_LOGIT = 10.0


class Sampling(NamedTuple):
    """Where a :class:`LAU` reads for each output pixel, and how it weighs what it reads."""

    offsets: Tensor
    """(N, g, k_u², 2, H', W'), (dy, dx) in output pixels."""
    positions: Tensor
    """(N, g, k_u², 2, H', W'), (y, x) in input pixels, where the offsets lead."""
    weights: Tensor
    """(N, heads, k_u², H', W'), of sum 1 over the points."""


@UPSAMPLER_REGISTRY.register()
class LAU(Upsampler):
    """Each output pixel's query weighs the window around it.

    The local attention that Du et al., "LDA-AQU: Adaptive Query-guided Upsampling via Local
    Deformable Attention", ACM MM 2024, start from. 33,856 parameters at 256 channels.

    Any size of output, empty batches and 1 x 1 maps included. The output has the input's dtype;
    coordinates and softmax are in float32 at least.

    Args:
        in_channels: C.
        scale_factor: output size over input size, where the call names no ``output_size``.
        reduction: r; queries and keys have d = C / r channels.
        num_heads: attention heads; divides d.
        kernel_size: k_u, odd; the window is of k_u x k_u output pixels.
        position_bias: whether the keys have a learned bias for each point of the window.
        init: "window", the published initial values, weighs the whole window; "bilinear" starts
            as bilinear interpolation with aligned corners, so that a network trained with another
            interpolation goes on from close to where it was. It needs ``position_bias``.
        backend: what computes it: see :func:`lda_aqu.ops.local_deformable_attention`.

    Raises:
        InputError: values that do not fit one another, or an unknown backend.
    """

    config_node = "LAU"

    def __init__(
        self,
        in_channels: int,
        scale_factor: float = 2,
        reduction: int = 4,
        num_heads: int = 1,
        kernel_size: int = 3,
        position_bias: bool = True,
        init: str = "window",
        backend: str = "auto",
    ) -> None:
        super().__init__(in_channels, scale_factor)
        check_backend(backend)
        depth = divide("in_channels", in_channels, "reduction", reduction)
        head_depth = divide(
            f"in_channels / reduction = {in_channels} / {reduction}", depth, "num_heads", num_heads
        )
        check_odd(kernel_size=kernel_size)
        if init not in INITIALIZATIONS:
            raise InputError(f"init {init!r}: allowed are {', '.join(INITIALIZATIONS)}")
        if init == "bilinear" and not position_bias:
            raise InputError("init 'bilinear' needs position_bias")
        self.num_heads = num_heads
        self.num_points = kernel_size**2
        self.init = init
        self.backend = backend

        self.layer_norm = ChannelLayerNorm(in_channels)
        self.proj_q = nn.Conv2d(in_channels, depth, 1, bias=False)
        self.proj_k = nn.Conv2d(in_channels, depth, 1, bias=False)
        if position_bias:
            self.relative_position_bias_table = nn.Parameter(
                torch.empty(1, num_heads, 1, self.num_points, head_depth)
            )
        else:
            self.register_parameter("relative_position_bias_table", None)
        self._reset_attention(self.layer_norm, self.proj_k)

    def reset_parameters(self) -> None:
        """Set the initial values."""
        self._reset_attention(self.layer_norm, self.proj_k)

    def _reset_attention(self, query_norm: ChannelLayerNorm, *others: nn.Conv2d) -> None:
        """Set the initial values of all but what finds the offsets.

        Args:
            query_norm: the normalisation whose output the queries are projected from.
            others: what else is projected from it.
        """
        nn.init.xavier_uniform_(self.proj_q.weight)
        nn.init.xavier_uniform_(self.proj_k.weight)
        self.layer_norm.norm.reset_parameters()
        query_norm.norm.reset_parameters()
        if self.relative_position_bias_table is not None:
            nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        if self.init == "bilinear":
            self._prefer_the_middle(query_norm, *others)

    @torch.no_grad()
    def _prefer_the_middle(self, query_norm: ChannelLayerNorm, *others: nn.Conv2d) -> None:
        """Give each query a part that all share, and the middle point's bias the same direction.

        The shared part is the bias of the normalisation seen through the queries' projection; it
        is chosen so that the other projections do not see it, if there are channels enough.
        """
        table = self._position_bias()
        if table.is_meta:
            return  # without values there is nothing to solve
        heads, points, depth = table.shape
        shared = table.new_full((heads, depth), (BILINEAR_LOGIT / depth**0.5) ** 0.5).float()
        table[:, points // 2] = shared.to(table.dtype)
        projection, wanted = self.proj_q.weight.flatten(1).float(), shared.view(-1, 1)
        for other in others:
            if len(projection) + other.out_channels <= projection.shape[1]:
                projection = torch.cat((projection, other.weight.flatten(1).float()))
                wanted = torch.cat((wanted, torch.zeros_like(wanted)))
        solution = torch.linalg.lstsq(projection, wanted).solution
        query_norm.norm.bias.copy_(solution[:, 0])

    def forward(self, x: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """(N, C, H, W) to (N, C, H', W')."""
        return self._attend(x, *self._query_key_offsets(x, output_size))

    def sampling(self, x: Tensor, output_size: tuple[int, int] | None = None) -> Sampling:
        """The positions and weights with which :meth:`forward` upsamples (N, C, H, W)."""
        return self._sampling(*self._query_key_offsets(x, output_size))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let what ``to`` and its like do to parameters see a bias table of four axes.

        The published one has five, which PyTorch takes for those of a volume, of which there is no
        channels-last.
        """

        def apply(t: Tensor) -> Tensor:
            return fn(t.squeeze(2)).contiguous().unsqueeze(2) if t.dim() == 5 else fn(t)

        return super()._apply(apply, recurse)

    def _query_key_offsets(
        self, x: Tensor, output_size: tuple[int, int] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(N, C, H, W) to (N, d, H', W'), (N, d, H, W) and (N, g, k_u², 2, H', W')."""
        size = self.target_size(x, output_size)
        layers = {"layer_norm": self.layer_norm, "proj_q": self.proj_q, "proj_k": self.proj_k}
        query, key = self._project(x, **layers)
        offsets, query = self._find_offsets(query, size)
        return query, key, offsets

    def _project(self, x: Tensor, **layers: nn.Module) -> list[Tensor]:
        """(N, C, H, W), normalised by the first of the layers, to (N, d, H, W) by each other."""
        layer_norm, *projections = layers.values()
        if can_be_fused(self, **layers) and all(p.bias is None for p in projections):
            norm, weights = layer_norm.norm, [projection.weight for projection in projections]
            return project_normalized(x, norm.weight, norm.bias, weights, self.backend)
        normalized = layer_norm(x)
        return [projection(normalized) for projection in projections]

    def _find_offsets(
        self, query: Tensor, output_size: tuple[int, int] | None
    ) -> tuple[Tensor, Tensor]:
        """Queries (N, d, H, W) to offsets (N, g, k_u², 2, H', W'), and resized, (N, d, H', W').

        The offsets are zero: an expanded number, for which no memory is allocated.
        """
        query = F.interpolate(query, output_size, mode="bilinear", align_corners=True)
        zero = query.new_zeros((), dtype=torch.float32)
        return zero.expand(query.shape[0], 1, self.num_points, 2, *query.shape[2:]), query

    def _attend(self, x: Tensor, query: Tensor, key: Tensor, offsets: Tensor) -> Tensor:
        bias, heads = self._position_bias(), self.num_heads
        return local_deformable_attention(query, key, x, offsets, bias, heads, self.backend)

    def _sampling(self, query: Tensor, key: Tensor, offsets: Tensor) -> Sampling:
        bias, heads = self._position_bias(), self.num_heads
        return Sampling(offsets, *sampling(query, key, offsets, bias, heads))

    def _position_bias(self) -> Tensor | None:
        """(heads, k_u², d / heads), as the operator takes it."""
        table = self.relative_position_bias_table
        return None if table is None else table.squeeze(2).squeeze(0)
