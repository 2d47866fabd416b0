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
from collections.abc import Sequence

from torch import Tensor

from .layout import Layout, compute_dtype
from .operator import Operator, check, check_tensors
from .plain import reassembly as plain


def reassemble(x: Tensor, weights: Tensor, backend: str = "auto") -> Tensor:
    """Sum up the input pixels around each output pixel, weighted, as CARAFE does.

    Output pixel (i, j) lies over input pixel (i H // Y, j W // X) and its window is centred there;
    outside the map x is zero. Sums are in float32, or in float64 if an input is. Memory beyond the
    output does not grow with k. While a model is traced or exported to ONNX, and under transforms
    of torch.func, standard operators take its place.

    Args:
        x: (N, C, H, W), floating point; C is a multiple of g.
        weights: (N, g, k², Y, X), floating point, window positions in row-major order; k is odd.
            Group c of g weighs its own C / g contiguous channels.
        backend: a name in :data:`lda_aqu.ops.BACKENDS`, or "auto" for the best that can run.

    Returns:
        (N, C, Y, X) with the dtype of ``x``.

    Raises:
        RuntimeError: shapes do not fit one another.
    """
    (sums,) = _REASSEMBLE(x, weights, backend=backend)
    return sums.to(x.dtype)


def similarity(x: Tensor, query: Tensor, kernel_size: int, backend: str = "auto") -> Tensor:
    """Inner products of each output pixel's query with the input pixels around it, as in SAPA.

    Windows are those of :func:`reassemble`; outside the map x is zero, and so is the product. While
    a model is traced or exported to ONNX, standard operators take its place.

    Args:
        x: (N, C, H, W), floating point.
        query: (N, C, Y, X), floating point.
        kernel_size: k, odd and positive.
        backend: as for :func:`reassemble`.

    Returns:
        (N, k², Y, X), window positions in row-major order; float32, or float64 if an input is.

    Raises:
        RuntimeError: shapes do not fit one another, or k is not odd and positive.
    """
    check(kernel_size > 0, lambda: f"expected a kernel_size of at least 1, got {kernel_size}")
    (products,) = _SIMILARITY(x, query, 1, kernel_size**2, backend=backend)
    return products.squeeze(1)


# The results of the three operators have the dtype of the sums: float32, or float64 if an input is.


def _reassembled(x: Tensor, weights: Tensor) -> list[Layout]:
    check(
        x.dim() == 4
        and weights.dim() == 5
        and weights.shape[0] == x.shape[0]
        and weights.shape[1] > 0
        and x.shape[1] % weights.shape[1] == 0,
        lambda: f"shapes do not fit: x {tuple(x.shape)}, weights {tuple(weights.shape)}",
    )
    _check_window(weights.shape[2])
    check_tensors(x, weights)
    return [Layout((*x.shape[:2], *weights.shape[3:]), compute_dtype(x, weights))]


def _similarities(x: Tensor, query: Tensor, num_groups: int, num_points: int) -> list[Layout]:
    check(
        x.dim() == 4 and query.dim() == 4 and x.shape[:2] == query.shape[:2],
        lambda: f"shapes do not fit: x {tuple(x.shape)}, query {tuple(query.shape)}",
    )
    _check_window(num_points)
    check_tensors(x, query)
    shape = (x.shape[0], num_groups, num_points, *query.shape[2:])
    return [Layout(shape, compute_dtype(x, query))]


def _spreads(weights: Tensor, query: Tensor, height: int, width: int) -> list[Layout]:
    check_tensors(weights, query)
    return [Layout((*query.shape[:2], height, width), compute_dtype(weights, query))]


def _check_window(num_points: int) -> None:
    check(
        math.isqrt(num_points) ** 2 == num_points and num_points % 2 == 1,
        lambda: f"windows are of k² positions with k odd, got {num_points}",
    )


def _reassemble_derivative(
    grads: Sequence[Tensor], x: Tensor, weights: Tensor, backend: str
) -> Sequence[Tensor]:
    (spread,) = _SPREAD(weights, grads[0], *x.shape[2:], backend=backend)
    (products,) = _SIMILARITY(x, grads[0], *weights.shape[1:3], backend=backend)
    return spread.to(x.dtype), products.to(weights.dtype)


def _similarity_derivative(
    grads: Sequence[Tensor],
    x: Tensor,
    query: Tensor,
    num_groups: int,
    num_points: int,
    backend: str,
) -> Sequence[Tensor]:
    (spread,) = _SPREAD(grads[0], query, *x.shape[2:], backend=backend)
    (sums,) = _REASSEMBLE(x, grads[0], backend=backend)
    return spread.to(x.dtype), sums.to(query.dtype)


def _spread_derivative(
    grads: Sequence[Tensor], weights: Tensor, query: Tensor, height: int, width: int, backend: str
) -> Sequence[Tensor]:
    (products,) = _SIMILARITY(grads[0], query, *weights.shape[1:3], backend=backend)
    (sums,) = _REASSEMBLE(grads[0], weights, backend=backend)
    return products.to(weights.dtype), sums.to(query.dtype)


_REASSEMBLE = Operator(
    "reassemble",
    "reassembly",
    _reassembled,
    plain.standard_reassemble,
    derivative=_reassemble_derivative,
)
_SIMILARITY = Operator(
    "similarity",
    "reassembly",
    _similarities,
    plain.standard_similarity,
    derivative=_similarity_derivative,
)
_SPREAD = Operator(
    "spread", "reassembly", _spreads, plain.standard_spread, derivative=_spread_derivative
)
