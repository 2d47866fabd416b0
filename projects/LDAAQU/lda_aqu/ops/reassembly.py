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
from types import EllipsisType

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 2**19
"""Output elements that are worked on at once: a few times as many fit into a CPU's cache."""


def reassemble(x: Tensor, weights: Tensor) -> Tensor:
    """Sum up the input pixels around each output pixel, weighted, as CARAFE does.

    Output pixel (i, j) lies over input pixel (i H // Y, j W // X) and its window is centred there;
    outside the map x is zero. Sums are in float32, or in float64 if an input is. Memory beyond the
    output does not grow with k.

    Args:
        x: (N, C, H, W), floating point; C is a multiple of g.
        weights: (N, g, k², Y, X), floating point, window positions in row-major order. Group c of g
            weighs its own C / g contiguous channels.

    Returns:
        (N, C, Y, X) with the dtype of ``x``.

    Raises:
        RuntimeError: shapes do not fit one another.
    """
    if not torch.jit.is_tracing():  # sizes are tensors then
        torch._check(
            x.dim() == 4
            and weights.dim() == 5
            and weights.shape[0] == x.shape[0]
            and weights.shape[1] > 0
            and x.shape[1] % weights.shape[1] == 0,
            lambda: f"shapes do not fit: x {tuple(x.shape)}, weights {tuple(weights.shape)}",
        )
    batch, groups = weights.shape[:2]
    grouped = x.reshape(batch * groups, x.shape[1] // groups, *x.shape[2:])
    grid = _Grid(x.shape[2:], weights.shape[3:])
    output = grid.take(_reassemble(grouped, grid.put(weights.flatten(0, 1))))
    return output.reshape(*x.shape[:2], *weights.shape[3:]).to(x.dtype)


def similarity(x: Tensor, query: Tensor, kernel_size: int) -> Tensor:
    """Inner products of each output pixel's query with the input pixels around it, as in SAPA.

    Windows are those of :func:`reassemble`; outside the map x is zero, and so is the product.

    Args:
        x: (N, C, H, W), floating point.
        query: (N, C, Y, X), floating point.
        kernel_size: k.

    Returns:
        (N, k², Y, X), window positions in row-major order; float32, or float64 if an input is.

    Raises:
        RuntimeError: shapes do not fit one another.
    """
    torch._check(
        x.dim() == 4 and query.dim() == 4 and x.shape[:2] == query.shape[:2],
        lambda: f"shapes do not fit: x {tuple(x.shape)}, query {tuple(query.shape)}",
    )
    grid = _Grid(x.shape[2:], query.shape[2:])
    return grid.take(_similarity(x, grid.put(query), kernel_size**2))


class _Grid:
    """Places output pixels on a grid of whole multiples of the input's size.

    Output pixels over the same input pixel become neighbours in its cell; cells with more room than
    that stay partly empty. Where the output's size is a multiple, nothing is moved.
    """

    def __init__(self, input_size: torch.Size, output_size: torch.Size) -> None:
        self.sizes = list(zip(input_size, output_size, strict=True))
        self.shape = [size * -(-output // size) for size, output in self.sizes]
        self.is_output = self.shape == list(output_size)

    def _positions(self, device: torch.device) -> tuple[Tensor, Tensor]:
        positions = []
        for (size, output), extent in zip(self.sizes, self.shape, strict=True):
            index = torch.arange(output, device=device)
            source = index * size // output
            first = -(-source * output // size)  # the first output pixel over that input pixel
            positions.append(source * (extent // size) + index - first)
        return positions[0][:, None], positions[1]

    def put(self, x: Tensor) -> Tensor:
        """(..., Y, X) on the grid, zero where no output pixel is."""
        if self.is_output:
            return x
        rows, columns = self._positions(x.device)
        on_grid = x.new_zeros((*x.shape[:-2], *self.shape))
        on_grid[..., rows, columns] = x
        return on_grid

    def take(self, x: Tensor) -> Tensor:
        """The output pixels, (..., Y, X), of what is on the grid."""
        if self.is_output:
            return x
        rows, columns = self._positions(x.device)
        return x[..., rows, columns]


# The three operators. In all of them Y and X are multiples of H and W, there is one group, and the
# result has the dtype of the computation: float32, or float64 if an input is.


@torch.library.custom_op("lda_aqu::reassemble", mutates_args=())
def _reassemble(x: Tensor, weights: Tensor) -> Tensor:
    """Of x (N, C, H, W) and weights (N, k², Y, X): (N, C, Y, X)."""
    weights = weights.to(_dtype(x, weights)).contiguous()
    windows = _Windows(weights.shape[1], x.shape[2:], weights.shape[2:])
    output = weights.new_zeros((*x.shape[:2], *weights.shape[2:]))
    for channels in _chunks(output):
        source = windows.expand(x[:, channels].to(output.dtype))
        for n, window in enumerate(windows):
            output[:, channels].addcmul_(source[window], weights[:, n, None])
    return output


@torch.library.custom_op("lda_aqu::similarity", mutates_args=())
def _similarity(x: Tensor, query: Tensor, num_points: int) -> Tensor:
    """Of x (N, C, H, W) and query (N, C, Y, X): (N, k², Y, X); ``num_points`` is k²."""
    windows = _Windows(num_points, x.shape[2:], query.shape[2:])
    products = query.new_zeros((x.shape[0], num_points, *query.shape[2:]), dtype=_dtype(x, query))
    for channels in _chunks(query):
        source = windows.expand(x[:, channels].to(products.dtype))
        chunk = query[:, channels].to(products.dtype).contiguous()
        for n, window in enumerate(windows):
            products[:, n] += (source[window] * chunk).sum(1)
    return products


@torch.library.custom_op("lda_aqu::spread", mutates_args=())
def _spread(weights: Tensor, query: Tensor, height: int, width: int) -> Tensor:
    """Of weights (N, k², Y, X) and query (N, C, Y, X): (N, C, H, W)."""
    weights = weights.to(_dtype(weights, query)).contiguous()
    windows = _Windows(weights.shape[1], (height, width), query.shape[2:])
    result = weights.new_zeros((*query.shape[:2], height, width))
    for channels in _chunks(query):
        target = windows.expand(result[:, channels])
        chunk = query[:, channels].to(result.dtype).contiguous()
        for n, window in enumerate(windows):
            target[window].addcmul_(chunk, weights[:, n, None])
        result[:, channels] = windows.contract(target)
    return result


@_reassemble.register_fake
def _(x: Tensor, weights: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:2], *weights.shape[2:]), dtype=_dtype(x, weights))


@_similarity.register_fake
def _(x: Tensor, query: Tensor, num_points: int) -> Tensor:
    return x.new_empty((x.shape[0], num_points, *query.shape[2:]), dtype=_dtype(x, query))


@_spread.register_fake
def _(weights: Tensor, query: Tensor, height: int, width: int) -> Tensor:
    return query.new_empty((*query.shape[:2], height, width), dtype=_dtype(weights, query))


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])


def _reassemble_autograd(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, weights = ctx.saved_tensors
    return (
        _spread(weights, grad, *x.shape[2:]).to(x.dtype),
        _similarity(x, grad, weights.shape[1]).to(weights.dtype),
    )


def _similarity_autograd(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    x, query = ctx.saved_tensors
    return (
        _spread(grad, query, *x.shape[2:]).to(x.dtype),
        _reassemble(x, grad).to(query.dtype),
        None,
    )


def _spread_autograd(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    weights, query = ctx.saved_tensors
    return (
        _similarity(grad, query, weights.shape[1]).to(weights.dtype),
        _reassemble(grad, weights).to(query.dtype),
        None,
        None,
    )


_reassemble.register_autograd(_reassemble_autograd, setup_context=_save)
_similarity.register_autograd(_similarity_autograd, setup_context=_save)
_spread.register_autograd(_spread_autograd, setup_context=_save)


class _Windows:
    """Where the k² window positions of all output pixels lie in an expanded input map.

    Expanded, a map is padded by k // 2 and every pixel repeated, so that position n of all windows
    is one slice of it of the output's size.
    """

    def __init__(
        self, num_points: int, input_size: Sequence[int], output_size: Sequence[int]
    ) -> None:
        self.size = math.isqrt(num_points)
        self.output_size = output_size
        self.factors = [o // i for o, i in zip(output_size, input_size, strict=True)]

    def __iter__(self) -> Iterator[tuple[slice | EllipsisType, ...]]:
        """Slices of the k² positions, in row-major order."""
        rows, columns = (
            [slice(i * factor, i * factor + size) for i in range(self.size)]
            for factor, size in zip(self.factors, self.output_size, strict=True)
        )
        return ((..., row, column) for row in rows for column in columns)

    def expand(self, x: Tensor) -> Tensor:
        """(N, C, H, W), padded with zeros and with every pixel repeated."""
        padded = F.pad(x.contiguous(), (self.size // 2,) * 4)
        size = [n * factor for n, factor in zip(padded.shape[2:], self.factors, strict=True)]
        return F.interpolate(padded, size, mode="nearest-exact")

    def contract(self, x: Tensor) -> Tensor:
        """The transpose of :meth:`expand`."""
        padding = self.size // 2
        summed = F.avg_pool2d(x, self.factors, divisor_override=1)
        return summed[..., padding : summed.shape[2] - padding, padding : summed.shape[3] - padding]


def _chunks(output: Tensor) -> Iterator[slice]:
    """Slices of the channels of (N, C, Y, X), each of about CHUNK elements or a single channel."""
    size = max(1, CHUNK // max(1, output[:, :1].numel()))
    return (slice(start, start + size) for start in range(0, output.shape[1], size))


def _dtype(a: Tensor, b: Tensor) -> torch.dtype:
    """What to compute in: float32, or float64 if an input is."""
    return torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
