"""The network of LDA-AQU that predicts where around each output pixel it samples."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import predict_offsets
from .channel_layer_norm import ChannelLayerNorm
from .fusing import can_be_fused


class OffsetNetwork(nn.Sequential):
    """A depthwise convolution, layer normalisation, GELU and a convolution, shared by groups.

    Its layers are numbered as in the published implementation. To start with there are no offsets.

    Args:
        channels: d / g, channels of a group of queries.
        num_groups: g.
        num_points: k_u², the points whose offsets it predicts for each group.
        kernel_size: k_e, odd; kernel of the last convolution.
        offset_range: theta, the largest offset, in output pixels.
        backend: what computes it: see :func:`lda_aqu.ops.predict_offsets`.
    """

    def __init__(
        self,
        channels: int,
        num_groups: int,
        num_points: int,
        kernel_size: int,
        offset_range: float,
        backend: str,
    ) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            ChannelLayerNorm(channels),
            nn.GELU(),
            nn.Conv2d(channels, 2 * num_points, kernel_size, padding=kernel_size // 2),
        )
        self.num_groups, self.offset_range, self.backend = num_groups, offset_range, backend
        self.reset_parameters()

    def extra_repr(self) -> str:
        """What ``print`` shows of the module, beside its layers."""
        return f"num_groups={self.num_groups}, offset_range={self.offset_range}"

    def reset_parameters(self) -> None:
        """Set the initial values."""
        nn.init.xavier_uniform_(self[0].weight)
        self[1].norm.reset_parameters()
        nn.init.zeros_(self[3].weight)
        nn.init.zeros_(self[3].bias)

    def forward(
        self, query: Tensor, output_size: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Queries (N, d, H, W) to offsets, and to the queries in the size of the offsets.

        The offsets are (N, g, k_u², 2, H', W'), (dy, dx) in output pixels, in float32 or float64;
        the queries are (N, d, H', W'), resized bilinearly with aligned corners where there is an
        ``output_size`` (H', W').
        """
        layers = dict(self.named_children())
        depthwise, layer_norm, _, convolution = layers.values()
        if (
            not can_be_fused(self, **layers)
            or depthwise.bias is not None
            or convolution.bias is None
        ):
            return self._call_layers(query, output_size)
        return predict_offsets(
            query,
            depthwise.weight,
            layer_norm.norm.weight,
            layer_norm.norm.bias,
            convolution.weight,
            convolution.bias,
            self.num_groups,
            self.offset_range,
            output_size,
            self.backend,
        )

    def _call_layers(
        self, query: Tensor, output_size: Sequence[int] | None
    ) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` does, layer by layer."""
        if output_size is not None:
            query = F.interpolate(query, output_size, mode="bilinear", align_corners=True)
        groups = query.unflatten(1, (self.num_groups, query.shape[1] // self.num_groups))
        predicted = super().forward(groups.flatten(0, 1))
        # Half precision has no room for fractions of a pixel.
        predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
        offsets = self.offset_range * predicted.tanh()
        offsets = offsets.unflatten(0, (query.shape[0], self.num_groups))
        return offsets.unflatten(2, (predicted.shape[1] // 2, 2)), query
