"""LDA-AQU computed as it was published: every sampled key and value is written to memory."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..upsamplers import LDAAQU


class PublishedLDAAQU(LDAAQU):
    """:class:`LDAAQU` with the same parameters, in plain functions that follow the paper.

    All k_u² copies of the keys and values at the output's size are sampled into memory, and then
    attended to. It is what the time and memory of the project's operator are compared with, and an
    independent statement of what it must compute.
    """

    def forward(self, x: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """(N, C, H, W) to (N, C, H', W')."""
        size = self.target_size(x, output_size)
        normalized = _layer_norm(x, self.layer_norm.norm)
        key = F.conv2d(normalized, self.proj_k.weight)
        query = F.conv2d(normalized, self.proj_q.weight)
        query = F.interpolate(query, size, mode="bilinear", align_corners=True)

        grid = self._grid(query)
        keys = self._sample(key, grid).unflatten(1, (self.num_heads, -1))
        values = self._sample(x, grid).unflatten(1, (self.num_heads, -1))
        query = query.unflatten(1, (self.num_heads, -1))
        if self.relative_position_bias_table is not None:
            # (1, h, 1, K, d/h) to (1, h, d/h, K, 1, 1)
            bias = self.relative_position_bias_table[:, :, 0].transpose(2, 3)
            keys = keys + bias[..., None, None]
        logits = (query[:, :, :, None] * keys).sum(2) * query.shape[2] ** -0.5
        attention = logits.softmax(2)
        return (attention[:, :, None] * values).sum(3).flatten(1, 2)

    def _grid(self, query: Tensor) -> Tensor:
        """Sampling positions in [-1, 1] for queries (N, d, H', W'): (N * g, K, H', W', 2)."""
        n, depth, height, width = query.shape
        depthwise, norm, _, predict = self.conv_offset
        hidden = query.reshape(n * self.num_groups, depth // self.num_groups, height, width)
        hidden = F.conv2d(hidden, depthwise.weight, padding=1, groups=hidden.shape[1])
        hidden = F.gelu(_layer_norm(hidden, norm.norm))
        offsets = F.conv2d(hidden, predict.weight, predict.bias, padding=predict.padding)
        offsets = self.offset_range * offsets.tanh()

        side = int(self.num_points**0.5)
        window = torch.arange(side, device=query.device) - side // 2
        rows = torch.arange(height, device=query.device)[:, None]
        columns = torch.arange(width, device=query.device)[None, :]
        a, b = (t.reshape(-1, 1, 1) for t in torch.meshgrid(window, window, indexing="ij"))
        dy, dx = offsets.unflatten(1, (self.num_points, 2)).unbind(2)
        y = (rows + a + dy) * (2 / (height - 1) if height > 1 else 0.0) - 1
        x = (columns + b + dx) * (2 / (width - 1) if width > 1 else 0.0) - 1
        return torch.stack((x, y), -1)

    def _sample(self, source: Tensor, grid: Tensor) -> Tensor:
        """All points of (N, C, H, W): (N, C, K, H', W')."""
        n, channels, height, width = source.shape
        groups = source.reshape(n * self.num_groups, channels // self.num_groups, height, width)
        sampled = F.grid_sample(groups, grid.flatten(1, 2), align_corners=True)
        return sampled.reshape(n, channels, *grid.shape[1:4])


def _layer_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    """Normalise (N, C, H, W) over C."""
    channels_last = x.permute(0, 2, 3, 1)
    return F.layer_norm(
        channels_last, norm.normalized_shape, norm.weight, norm.bias, norm.eps
    ).permute(0, 3, 1, 2)
