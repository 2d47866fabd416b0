"""Reassembly, similarity and spread in plain PyTorch.

Each twice: in loops over chunks that fit into a CPU's cache, and, for exporters and for transforms
of functions, in standard operators. Shape shorthand as in :mod:`lda_aqu.ops.reassembly`.
"""

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from types import EllipsisType

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layout import compute_dtype, split_channels

CHUNK = 2**19
"""Output elements that are worked on at once: a few times as many fit into a CPU's cache."""
GPU_CHUNK = 2**26
"""The same on a GPU, which is kept waiting by small chunks: bounds the memory taken meanwhile."""


def reassemble(x: Tensor, weights: Tensor) -> list[Tensor]:
    """Of x (N, C, H, W) and weights (N, g, k², Y, X): (N, C, Y, X)."""
    windows = _Windows(weights.shape[2], x.shape[2:], weights.shape[3:])
    maps, on_grid = _split(x, weights.shape[1]), windows.put(weights.flatten(0, 1))
    on_grid = on_grid.to(compute_dtype(x, weights))
    sums = on_grid.new_zeros((*maps.shape[:2], *on_grid.shape[2:]))
    for channels in _chunks(sums):
        source = windows.expand(maps[:, channels].to(sums.dtype))
        for n, window in enumerate(windows):
            sums[:, channels].addcmul_(source[window], on_grid[:, n, None])
    return [windows.take(sums).reshape(*x.shape[:2], *weights.shape[3:])]


def similarity(x: Tensor, query: Tensor, num_groups: int, num_points: int) -> list[Tensor]:
    """Of x (N, C, H, W) and query (N, C, Y, X): (N, g, k², Y, X); ``num_points`` is k²."""
    windows = _Windows(num_points, x.shape[2:], query.shape[2:])
    maps, on_grid = _split(x, num_groups), windows.put(_split(query, num_groups))
    products = on_grid.new_zeros(
        (maps.shape[0], num_points, *on_grid.shape[2:]), dtype=compute_dtype(x, query)
    )
    for channels in _chunks(on_grid):
        source = windows.expand(maps[:, channels].to(products.dtype))
        chunk = on_grid[:, channels].to(products.dtype)
        for n, window in enumerate(windows):
            products[:, n] += (source[window] * chunk).sum(1)
    return [windows.take(products).reshape(x.shape[0], num_groups, num_points, *query.shape[2:])]


def spread(weights: Tensor, query: Tensor, height: int, width: int) -> list[Tensor]:
    """Of weights (N, g, k², Y, X) and query (N, C, Y, X): (N, C, H, W)."""
    windows = _Windows(weights.shape[2], (height, width), query.shape[2:])
    on_grid = windows.put(weights.flatten(0, 1)).to(compute_dtype(weights, query))
    queries = windows.put(_split(query, weights.shape[1]))
    result = on_grid.new_zeros((*queries.shape[:2], height, width))
    for channels in _chunks(queries):
        target = windows.expand(result[:, channels])
        chunk = queries[:, channels].to(result.dtype)
        for n, window in enumerate(windows):
            target[window].addcmul_(chunk, on_grid[:, n, None])
        result[:, channels] = windows.contract(target)
    return [result.reshape(*query.shape[:2], height, width)]


def standard_reassemble(x: Tensor, weights: Tensor) -> list[Tensor]:
    """What :func:`reassemble` computes, in standard operators."""
    _, groups, num_points, *size = weights.shape
    dtype = compute_dtype(x, weights)
    parts = (
        split_channels(pixels, groups) * weights[:, :, n, None]
        for n, pixels in enumerate(_standard_windows(x.to(dtype), math.isqrt(num_points), size))
    )
    return [reduce(torch.add, parts).flatten(1, 2)]


def standard_similarity(x: Tensor, query: Tensor, num_groups: int, num_points: int) -> list[Tensor]:
    """What :func:`similarity` computes, in standard operators."""
    windows = _standard_windows(
        x.to(compute_dtype(x, query)), math.isqrt(num_points), query.shape[2:]
    )
    products = [split_channels(pixels * query, num_groups).sum(2) for pixels in windows]
    return [torch.stack(products, 2)]


def standard_spread(weights: Tensor, query: Tensor, height: int, width: int) -> list[Tensor]:
    """What :func:`spread` computes, in standard operators."""
    _, groups, num_points, rows, columns = weights.shape
    size, dtype = math.isqrt(num_points), compute_dtype(weights, query)
    queries = split_channels(query.to(dtype), groups)
    over_row = _under(height, rows, query.device)
    over_column = _under(width, columns, query.device)
    padded: list[Tensor] = []
    for n in range(num_points):
        weighted = (queries * weights[:, :, n, None]).flatten(1, 2)
        target = weighted.new_zeros((*weighted.shape[:2], height, columns))
        target = target.index_add(2, over_row, weighted)
        target = target.new_zeros((*target.shape[:3], width)).index_add(3, over_column, target)
        row, column = divmod(n, size)
        padded.append(F.pad(target, (column, size - 1 - column, row, size - 1 - row)))
    border = size // 2
    return [reduce(torch.add, padded)[..., border : border + height, border : border + width]]


def _standard_windows(x: Tensor, kernel_size: int, output_size: Sequence[int]) -> Iterator[Tensor]:
    """The k² pixels around that under each output pixel, (N, C, Y, X) each."""
    padded = F.pad(x, (kernel_size // 2,) * 4)
    rows, columns = (
        _under(*extents, x.device) for extents in zip(x.shape[2:], output_size, strict=True)
    )
    shifted = [padded.index_select(3, columns + column) for column in range(kernel_size)]
    for row in range(kernel_size):
        for pixels in shifted:
            yield pixels.index_select(2, rows + row)


def _under(extent: int, output: int, device: torch.device) -> Tensor:
    """The input pixel under each of ``output`` output pixels, along one side."""
    # interpolate(mode="nearest") rounds: of 58 over 30, output pixel 29 is put over 14, not 15.
    return torch.arange(output, device=device) * extent // output


class _Windows:
    """Where the k² window positions of all output pixels lie in an expanded input map.

    Expanded, a map is padded by k // 2 and every pixel repeated to a cell of equal pixels, so that
    position n of all windows is one slice of it. For that, output pixels are put on a grid of
    whole multiples of the input's size: those over the same input pixel into its cell, which stays
    partly empty where there is more room. An output whose size is a multiple is its own grid.
    """

    def __init__(
        self, num_points: int, input_size: Sequence[int], output_size: Sequence[int]
    ) -> None:
        self.size = math.isqrt(num_points)
        self.input_size, self.output_size = list(input_size), list(output_size)
        self.cell = [-(-o // i) for o, i in zip(self.output_size, self.input_size, strict=True)]
        self.grid = [c * i for c, i in zip(self.cell, self.input_size, strict=True)]

    def __iter__(self) -> Iterator[tuple[EllipsisType | slice, ...]]:
        """Slices of the k² positions, in row-major order."""
        rows, columns = (
            [slice(n * cell, n * cell + extent) for n in range(self.size)]
            for cell, extent in zip(self.cell, self.grid, strict=True)
        )
        return ((..., row, column) for row in rows for column in columns)

    def expand(self, x: Tensor) -> Tensor:
        """(N, C, H, W), padded with zeros and with every pixel repeated."""
        padded = F.pad(x.contiguous(), (self.size // 2,) * 4)
        size = [n * cell for n, cell in zip(padded.shape[2:], self.cell, strict=True)]
        return F.interpolate(padded, size, mode="nearest-exact")

    def contract(self, x: Tensor) -> Tensor:
        """The transpose of :meth:`expand`."""
        padding = self.size // 2
        summed = F.avg_pool2d(x, self.cell, divisor_override=1)
        return summed[..., padding : summed.shape[2] - padding, padding : summed.shape[3] - padding]

    def put(self, x: Tensor) -> Tensor:
        """(..., Y, X) on the grid, zero where no output pixel is; contiguous."""
        if self.grid == self.output_size:
            return x.contiguous()
        rows, columns = self._positions(x.device)
        on_grid = x.new_zeros((*x.shape[:-2], *self.grid))
        on_grid[..., rows, columns] = x
        return on_grid

    def take(self, x: Tensor) -> Tensor:
        """The output pixels, (..., Y, X), of what is on the grid."""
        if self.grid == self.output_size:
            return x
        rows, columns = self._positions(x.device)
        return x[..., rows, columns]

    def _positions(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows and columns of the output pixels on the grid."""
        positions = []
        for extent, output, cell in zip(self.input_size, self.output_size, self.cell, strict=True):
            index = torch.arange(output, device=device)
            source = index * extent // output
            first = -(-source * output // extent)  # the first output pixel over that input pixel
            positions.append(source * cell + index - first)
        return positions[0][:, None], positions[1]


def _chunks(x: Tensor) -> Iterator[slice]:
    """Slices of the channels of (N, C, Y, X), each of about a chunk or of a single channel."""
    chunk = CHUNK if x.device.type == "cpu" else GPU_CHUNK
    size = max(1, chunk // max(1, x[:, :1].numel()))
    return (slice(start, start + size) for start in range(0, x.shape[1], size))


def _split(x: Tensor, num_groups: int) -> Tensor:
    """(N, C, ...) to (N * g, C / g, ...)."""
    return x.reshape(x.shape[0] * num_groups, x.shape[1] // num_groups, *x.shape[2:])
