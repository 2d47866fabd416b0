"""LDA-AQU computed as it was published: every sampled key and value is written to memory.

The steps are those of https://github.com/duzw9311/LDA-AQU, mmdet/models/necks/fpn_lau.py.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..upsamplers import LDAAQU


class PublishedLDAAQU(LDAAQU):
    """:class:`LDAAQU` with the same parameters, in the steps in which it was published.

    Keys and values take the same way one after the other: the positions of all k_u² points become
    the grid of one map of k_u times the output's size, that map is sampled, and laid out anew with
    the points and channels of each output pixel side by side, for batched matrix products. It is
    what the time and memory of the project's operator are compared with, and an independent
    statement of what it must compute.
    """

    def __init__(
        self, in_channels: int, num_groups: int = 2, offset_range: float = 11.0, **options: Any
    ) -> None:
        super().__init__(in_channels, num_groups=num_groups, offset_range=offset_range, **options)
        self.groups, self.range = num_groups, offset_range

    def forward(self, x: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """(N, C, H, W) to (N, C, H', W')."""
        size = self.target_size(x, output_size)
        normalized = self.layer_norm(x).contiguous()
        query, key = self.proj_q(normalized), self.proj_k(normalized)
        query = F.interpolate(query, size, mode="bilinear", align_corners=True)

        offsets = self._offsets_from_centre(query)
        keys, values = self._sample(key, offsets), self._sample(x, offsets)
        if self.relative_position_bias_table is not None:
            keys = keys + self.relative_position_bias_table
        # (N, h, H'W', 1, d/h)
        queries = query.unflatten(1, (self.num_heads, -1)).flatten(3).transpose(2, 3).unsqueeze(3)
        attention = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(3, 4)
        output = attention.softmax(-1) @ values
        return output.squeeze(3).transpose(2, 3).reshape(x.shape[0], x.shape[1], *size)

    def _offsets_from_centre(self, query: Tensor) -> Tensor:
        """(N, d, H', W') to (N * g, k_u, k_u, 2, H', W'): (dy, dx), the window's included."""
        hidden = query.unflatten(1, (self.groups, -1)).flatten(0, 1)
        for layer in self.conv_offset:
            hidden = layer(hidden).contiguous()
        side = math.isqrt(self.num_points)
        axis = torch.arange(side, device=query.device, dtype=query.dtype) - side // 2
        window = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
        offsets = (self.range * hidden.tanh()).unflatten(1, (side, side, 2))
        return offsets + window[..., None, None]

    def _sample(self, source: Tensor, offsets: Tensor) -> Tensor:
        """All points of (N, C, H, W), as batched products take them: (N, h, H'W', k_u², C / h)."""
        side, size = offsets.shape[1], offsets.shape[-2:]
        axes = (torch.arange(length, device=source.device) for length in size)
        pixels = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
        # (N * g, k_u, H', k_u, W', 2)
        positions = offsets.permute(0, 1, 4, 2, 5, 3) + pixels[:, None]
        positions = positions.reshape(-1, side * size[0], side * size[1], 2)
        for axis, length in enumerate(size):
            scale = 2 / (length - 1) if length > 1 else 0.0
            positions[..., axis] = positions[..., axis] * scale - 1

        maps = source.unflatten(1, (self.groups, -1)).flatten(0, 1)
        sampled = F.grid_sample(maps, positions.flip(-1), align_corners=True)
        # (N * g, C / g, k_u H', k_u W') to (N * g, k_u², C / g, H', W')
        sampled = sampled.unflatten(3, (side, -1)).unflatten(2, (side, -1))
        sampled = sampled.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        # to (N, H'W', k_u², C)
        sampled = sampled.unflatten(0, (-1, self.groups)).permute(0, 4, 5, 2, 1, 3)
        sampled = sampled.flatten(4, 5).flatten(1, 2)
        return sampled.unflatten(3, (self.num_heads, -1)).movedim(3, 1)
