"""LDA-AQU computed as it was published: every sampled key and value is written to memory.

The steps are those of https://github.com/duzw9311/LDA-AQU, mmdet/models/necks/fpn_lau.py.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..upsamplers import LDAAQU


class PublishedLDAAQU(LDAAQU):
    """:class:`LDAAQU` with the same parameters, in the steps in which it was published.

    The keys and values of all k_u² points are sampled as one map of k_u times the output's size,
    laid out anew with the points and channels of each output pixel side by side, and attended to
    by batched matrix products. It is what the time and memory of the project's operator are
    compared with, and an independent statement of what it must compute.
    """

    def forward(self, x: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """(N, C, H, W) to (N, C, H', W')."""
        size = self.target_size(x, output_size)
        normalized = _layer_norm(x, self.layer_norm.norm)
        key = F.conv2d(normalized, self.proj_k.weight)
        query = F.conv2d(normalized, self.proj_q.weight)
        query = F.interpolate(query, size, mode="bilinear", align_corners=True)

        grid = self._grid(query)
        keys, values = self._sample(key, grid), self._sample(x, grid)
        if self.relative_position_bias_table is not None:
            keys = keys + self.relative_position_bias_table
        # (N, h, H'W', 1, d/h)
        queries = query.unflatten(1, (self.num_heads, -1)).flatten(3).transpose(2, 3).unsqueeze(3)
        attention = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(3, 4)
        output = attention.softmax(-1) @ values
        return output.squeeze(3).transpose(2, 3).reshape(x.shape[0], x.shape[1], *size)

    def _grid(self, query: Tensor) -> Tensor:
        """Sampling positions in [-1, 1] for queries (N, d, H', W'): (N * g, k_u H', k_u W', 2)."""
        n, depth, height, width = query.shape
        depthwise, norm, _, predict = self.conv_offset
        hidden = query.reshape(n * self.num_groups, depth // self.num_groups, height, width)
        hidden = F.conv2d(hidden, depthwise.weight, padding=1, groups=hidden.shape[1])
        hidden = F.gelu(_layer_norm(hidden, norm.norm))
        offsets = F.conv2d(hidden, predict.weight, predict.bias, padding=predict.padding)
        offsets = self.offset_range * offsets.tanh()

        side = math.isqrt(self.num_points)
        window = torch.arange(side, device=query.device) - side // 2
        rows = torch.arange(height, device=query.device)
        columns = torch.arange(width, device=query.device)
        # (N * g, k_u, k_u, H', W') each
        dy, dx = offsets.unflatten(1, (side, side, 2)).unbind(3)
        y = dy + window[:, None, None, None] + rows[:, None]
        x = dx + window[:, None, None] + columns
        y = y * (2 / (height - 1) if height > 1 else 0.0) - 1
        x = x * (2 / (width - 1) if width > 1 else 0.0) - 1
        grid = torch.stack((x, y), -1).transpose(2, 3)
        return grid.reshape(len(offsets), side * height, side * width, 2)

    def _sample(self, source: Tensor, grid: Tensor) -> Tensor:
        """All points of (N, C, H, W), as batched products take them: (N, h, H'W', k_u², C / h)."""
        n, channels, height, width = source.shape
        groups = source.reshape(n * self.num_groups, channels // self.num_groups, height, width)
        sampled = F.grid_sample(groups, grid, align_corners=True)
        side = math.isqrt(self.num_points)
        # (N * g, C / g, k_u H', k_u W') to (N, H'W', k_u², C)
        sampled = sampled.unflatten(3, (side, -1)).unflatten(2, (side, -1))
        sampled = sampled.permute(0, 3, 5, 2, 4, 1).flatten(1, 2).flatten(2, 3)
        sampled = sampled.unflatten(0, (n, self.num_groups)).movedim(1, 3).flatten(3)
        return sampled.unflatten(3, (self.num_heads, -1)).movedim(3, 1)


def _layer_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    """Normalise (N, C, H, W) over C."""
    channels_last = x.permute(0, 2, 3, 1)
    normalized = F.layer_norm(
        channels_last, norm.normalized_shape, norm.weight, norm.bias, norm.eps
    )
    return normalized.permute(0, 3, 1, 2).contiguous()
