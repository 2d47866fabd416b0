"""Weighted sums and similarities over the window of input pixels around each output pixel.

Both are derivatives of one form that is linear in each of its three parts,

    T(x, weights, query) = sum over c, n, i, j of x[c, p(i, j) + n] weights[n, i, j] query[c, i, j]

where p(i, j) is the input pixel under output pixel (i, j) and n runs over the k x k window. Its
derivative by the query is the reassembly, that by the weights the similarity, and that by x
spreads weighted queries over their windows: three operators, the gradients of each of which are
the other two, so that inputs alone are saved, and any order of derivatives exists.

Shape shorthand:
    N: batch; C: channels; g: groups; H, W: input size; Y, X: output size; k: window size, odd
"""

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from types import EllipsisType

import torch
from torch import Tensor
from torch.nn import functional as F

from .exporting import is_exporting

CHUNK = 2**19
"""Output elements that are worked on at once: a few times as many fit into a CPU's cache."""


def reassemble(x: Tensor, weights: Tensor) -> Tensor:
    """Sum up the input pixels around each output pixel, weighted, as CARAFE does.

    Output pixel (i, j) lies over input pixel (i H // Y, j W // X) and its window is centred there;
    outside the map x is zero. Sums are in float32, or in float64 if an input is. Memory beyond the
    output does not grow with k. While a model is traced or exported to ONNX, standard operators
    take its place.

    Args:
        x: (N, C, H, W), floating point; C is a multiple of g.
        weights: (N, g, k², Y, X), floating point, window positions in row-major order; k is odd.
            Group c of g weighs its own C / g contiguous channels.

    Returns:
        (N, C, Y, X) with the dtype of ``x``.

    Raises:
        RuntimeError: shapes do not fit one another.
    """
    if is_exporting():
        return _exportable_reassemble(x, weights)
    return _reassemble(x, weights).to(x.dtype)


def similarity(x: Tensor, query: Tensor, kernel_size: int) -> Tensor:
    """Inner products of each output pixel's query with the input pixels around it, as in SAPA.

    Windows are those of :func:`reassemble`; outside the map x is zero, and so is the product. While
    a model is traced or exported to ONNX, standard operators take its place.

    Args:
        x: (N, C, H, W), floating point.
        query: (N, C, Y, X), floating point.
        kernel_size: k, odd.

    Returns:
        (N, k², Y, X), window positions in row-major order; float32, or float64 if an input is.

    Raises:
        RuntimeError: shapes do not fit one another.
    """
    if is_exporting():
        return _exportable_similarity(x, query, kernel_size)
    return _similarity(x, query, 1, kernel_size**2).squeeze(1)


# The three operators. Their results have the dtype of the computation: float32, or float64 if an
# input is.


@torch.library.custom_op("lda_aqu::reassemble", mutates_args=())
def _reassemble(x: Tensor, weights: Tensor) -> Tensor:
    """Of x (N, C, H, W) and weights (N, g, k², Y, X): (N, C, Y, X)."""
    _check_weights(x, weights)
    windows = _Windows(weights.shape[2], x.shape[2:], weights.shape[3:])
    maps, on_grid = _split(x, weights.shape[1]), windows.put(weights.flatten(0, 1))
    on_grid = on_grid.to(_dtype(x, weights))
    sums = on_grid.new_zeros((*maps.shape[:2], *on_grid.shape[2:]))
    for channels in _chunks(sums):
        source = windows.expand(maps[:, channels].to(sums.dtype))
        for n, window in enumerate(windows):
            sums[:, channels].addcmul_(source[window], on_grid[:, n, None])
    return windows.take(sums).reshape(*x.shape[:2], *weights.shape[3:])


@torch.library.custom_op("lda_aqu::similarity", mutates_args=())
def _similarity(x: Tensor, query: Tensor, num_groups: int, num_points: int) -> Tensor:
    """Of x (N, C, H, W) and query (N, C, Y, X): (N, g, k², Y, X); ``num_points`` is k²."""
    _check_query(x, query, num_points)
    windows = _Windows(num_points, x.shape[2:], query.shape[2:])
    maps, on_grid = _split(x, num_groups), windows.put(_split(query, num_groups))
    products = on_grid.new_zeros(
        (len(maps), num_points, *on_grid.shape[2:]), dtype=_dtype(x, query)
    )
    for channels in _chunks(on_grid):
        source = windows.expand(maps[:, channels].to(products.dtype))
        chunk = on_grid[:, channels].to(products.dtype)
        for n, window in enumerate(windows):
            products[:, n] += (source[window] * chunk).sum(1)
    return windows.take(products).reshape(len(x), num_groups, num_points, *query.shape[2:])


@torch.library.custom_op("lda_aqu::spread", mutates_args=())
def _spread(weights: Tensor, query: Tensor, height: int, width: int) -> Tensor:
    """Of weights (N, g, k², Y, X) and query (N, C, Y, X): (N, C, H, W)."""
    windows = _Windows(weights.shape[2], (height, width), query.shape[2:])
    on_grid = windows.put(weights.flatten(0, 1)).to(_dtype(weights, query))
    queries = windows.put(_split(query, weights.shape[1]))
    result = on_grid.new_zeros((*queries.shape[:2], height, width))
    for channels in _chunks(queries):
        target = windows.expand(result[:, channels])
        chunk = queries[:, channels].to(result.dtype)
        for n, window in enumerate(windows):
            target[window].addcmul_(chunk, on_grid[:, n, None])
        result[:, channels] = windows.contract(target)
    return result.reshape(*query.shape[:2], height, width)


@_reassemble.register_fake
def _(x: Tensor, weights: Tensor) -> Tensor:
    _check_weights(x, weights)
    return x.new_empty((*x.shape[:2], *weights.shape[3:]), dtype=_dtype(x, weights))


@_similarity.register_fake
def _(x: Tensor, query: Tensor, num_groups: int, num_points: int) -> Tensor:
    _check_query(x, query, num_points)
    shape = (x.shape[0], num_groups, num_points, *query.shape[2:])
    return x.new_empty(shape, dtype=_dtype(x, query))


@_spread.register_fake
def _(weights: Tensor, query: Tensor, height: int, width: int) -> Tensor:
    return query.new_empty((*query.shape[:2], height, width), dtype=_dtype(weights, query))


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])


def _reassemble_autograd(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, weights = ctx.saved_tensors
    return (
        _spread(weights, grad, *x.shape[2:]).to(x.dtype),
        _similarity(x, grad, *weights.shape[1:3]).to(weights.dtype),
    )


def _similarity_autograd(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    x, query = ctx.saved_tensors
    return (
        _spread(grad, query, *x.shape[2:]).to(x.dtype),
        _reassemble(x, grad).to(query.dtype),
        None,
        None,
    )


def _spread_autograd(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    weights, query = ctx.saved_tensors
    return (
        _similarity(grad, query, *weights.shape[1:3]).to(weights.dtype),
        _reassemble(grad, weights).to(query.dtype),
        None,
        None,
    )


_reassemble.register_autograd(_reassemble_autograd, setup_context=_save)
_similarity.register_autograd(_similarity_autograd, setup_context=_save)
_spread.register_autograd(_spread_autograd, setup_context=_save)


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


def _check_weights(x: Tensor, weights: Tensor) -> None:
    """Raise RuntimeError unless the shapes fit. Works on fake tensors."""
    torch._check(
        x.dim() == 4
        and weights.dim() == 5
        and weights.shape[0] == x.shape[0]
        and weights.shape[1] > 0
        and x.shape[1] % weights.shape[1] == 0,
        lambda: f"shapes do not fit: x {tuple(x.shape)}, weights {tuple(weights.shape)}",
    )
    _check_window(weights.shape[2])


def _check_query(x: Tensor, query: Tensor, num_points: int) -> None:
    """Raise RuntimeError unless the shapes fit. Works on fake tensors."""
    torch._check(
        x.dim() == 4 and query.dim() == 4 and x.shape[:2] == query.shape[:2],
        lambda: f"shapes do not fit: x {tuple(x.shape)}, query {tuple(query.shape)}",
    )
    _check_window(num_points)


def _check_window(num_points: int) -> None:
    torch._check(
        math.isqrt(num_points) ** 2 == num_points and num_points % 2 == 1,
        lambda: f"windows are of k² positions with k odd, got {num_points}",
    )


def _chunks(x: Tensor) -> Iterator[slice]:
    """Slices of the channels of (N, C, Y, X), each of about CHUNK elements or a single channel."""
    size = max(1, CHUNK // max(1, x[:, :1].numel()))
    return (slice(start, start + size) for start in range(0, x.shape[1], size))


def _split(x: Tensor, num_groups: int) -> Tensor:
    """(N, C, ...) to (N * g, C / g, ...)."""
    return x.reshape(len(x) * num_groups, x.shape[1] // num_groups, *x.shape[2:])


def _dtype(a: Tensor, b: Tensor) -> torch.dtype:
    """What to compute in: float32, or float64 if an input is."""
    return torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)


def _exportable_reassemble(x: Tensor, weights: Tensor) -> Tensor:
    """What :func:`reassemble` computes, in operators that exporters know."""
    _, groups, num_points, *size = weights.shape
    parts = (
        pixels.unflatten(1, (groups, x.shape[1] // groups)) * weights[:, :, n, None]
        for n, pixels in enumerate(_exportable_windows(x, math.isqrt(num_points), size))
    )
    return reduce(torch.add, parts).flatten(1, 2).to(x.dtype)


def _exportable_similarity(x: Tensor, query: Tensor, kernel_size: int) -> Tensor:
    """What :func:`similarity` computes, in operators that exporters know."""
    windows = _exportable_windows(x, kernel_size, query.shape[2:])
    return torch.stack([(pixels * query).sum(1) for pixels in windows], 1).to(_dtype(x, query))


def _exportable_windows(
    x: Tensor, kernel_size: int, output_size: Sequence[int]
) -> Iterator[Tensor]:
    """The k² pixels around that under each output pixel, (N, C, Y, X) each."""
    height, width = x.shape[2:]
    padded = F.pad(x, (kernel_size // 2,) * 4)
    for row in range(kernel_size):
        for column in range(kernel_size):
            shifted = padded[..., row : row + height, column : column + width]
            yield F.interpolate(shifted, tuple(output_size))
