"""Local deformable attention as one PyTorch operator: its schema, its gradient, its shapes.

The computation itself is that of one of the :mod:`lda_aqu.ops.backends`.
"""

import math

import torch
from torch import Tensor

from . import plain
from .backends import check_backend, choose_backend
from .exporting import is_exporting
from .memory_format import laid_out_as, memory_format_of


def local_deformable_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    position_bias: Tensor | None,
    num_heads: int,
    backend: str = "auto",
) -> Tensor:
    """Let every output pixel attend to k x k deformed positions of the input (LDA-AQU).

    Output pixel (i, j) of group c reads point n = (a, b), where a and b run over -p..p and
    p = (k - 1) / 2, at (i + a + dy, j + b + dx) of the output grid, scaled to the input grid by
    (H - 1) / (H' - 1) and (W - 1) / (W' - 1), or 0 where the output has size 1. Keys and values are
    read bilinearly and are zero outside the map. The output is the sum of the values, weighted by
    the softmax over n of (d / heads)^-0.5 * query . (key_n + position_bias_n).

    Coordinates, softmax and sums are in float32, or in float64 if any input is. The k² samples are
    not stored; the backward pass keeps the inputs alone and computes the rest anew. Not
    differentiable twice. While a model is traced or exported to ONNX, the standard operators of the
    plain backend take the operator's place.

    Args:
        query: (N, d, H', W'), floating point. d is a multiple of ``num_heads`` and of g.
        key: (N, d, H, W). Group c of g reads its own d / g contiguous channels.
        value: (N, C, H, W). C is a multiple of ``num_heads`` and of g; contiguous slices likewise.
        offsets: (N, g, k², 2, H', W'), (dy, dx) in output pixels; points in row-major order.
        position_bias: (heads, k², d / heads), or None for none.
        num_heads: number of attention heads, contiguous slices of the channels.
        backend: a name in :data:`lda_aqu.ops.BACKENDS`, or "auto" for the best that can run.

    Returns:
        (N, C, H', W') with the dtype and the memory format of ``value``.

    Raises:
        InputError: unknown backend.
        RuntimeError: shapes, dtypes or devices do not fit one another, or the backend that was
            asked for cannot run.
    """
    check_backend(backend)
    if is_exporting():
        # Unchecked: sizes are tensors while a graph is traced.
        return plain.attention.forward(query, key, value, offsets, position_bias, num_heads)
    return _forward(query, key, value, offsets, position_bias, num_heads, backend)


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    position_bias: Tensor | None,
    num_heads: int,
) -> None:
    """Raise RuntimeError unless the inputs fit the schema. Works on fake tensors."""
    shapes = (
        f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}, "
        f"offsets {tuple(offsets.shape)}, num_heads {num_heads}"
    )
    torch._check(
        query.dim() == key.dim() == value.dim() == 4 and offsets.dim() == 6,
        lambda: f"expected 4-d query, key and value and 6-d offsets, got {shapes}",
    )
    batch, depth, *output_size = query.shape
    channels = value.shape[1]
    _, groups, points, pair, *offsets_size = offsets.shape
    torch._check(
        key.shape[0] == batch
        and value.shape[0] == batch
        and offsets.shape[0] == batch
        and key.shape[1] == depth
        and key.shape[2:] == value.shape[2:]
        and offsets_size == output_size
        and pair == 2,
        lambda: f"shapes do not fit one another: {shapes}",
    )
    torch._check(
        math.isqrt(points) ** 2 == points and points % 2 == 1,
        lambda: f"offsets need k² points with k odd, got {points}",
    )
    torch._check(
        num_heads > 0
        and groups > 0
        and depth % num_heads == 0
        and channels % num_heads == 0
        and depth % groups == 0
        and channels % groups == 0,
        lambda: f"channels are not multiples of heads and groups: {shapes}",
    )
    if position_bias is not None:
        expected = (num_heads, points, depth // num_heads)
        torch._check(
            tuple(position_bias.shape) == expected,
            lambda: f"expected position_bias {expected}, got {tuple(position_bias.shape)}",
        )
    for tensor in (query, key, value, offsets, position_bias):
        if tensor is not None:
            torch._check(
                tensor.is_floating_point() and tensor.device == value.device,
                lambda: "expected floating-point tensors on one device",
            )


@torch.library.custom_op("lda_aqu::local_deformable_attention", mutates_args=())
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    position_bias: Tensor | None,
    num_heads: int,
    backend: str,
) -> Tensor:
    _check(query, key, value, offsets, position_bias, num_heads)
    compute = choose_backend(backend, value.device).attention.forward
    output = compute(query, key, value, offsets, position_bias, num_heads)
    return output.contiguous(memory_format=memory_format_of(value))


@_forward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    position_bias: Tensor | None,
    num_heads: int,
    backend: str,
) -> Tensor:
    _check(query, key, value, offsets, position_bias, num_heads)
    return torch.empty(
        (*value.shape[:2], *query.shape[2:]),
        dtype=value.dtype,
        device=value.device,
        memory_format=memory_format_of(value),
    )


@torch.library.custom_op("lda_aqu::local_deformable_attention_backward", mutates_args=())
def _backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    position_bias: Tensor | None,
    num_heads: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    compute = choose_backend(backend, value.device).attention.backward
    *grads, grad_bias = compute(grad_output, query, key, value, offsets, position_bias, num_heads)
    inputs = (query, key, value, offsets)
    return (*(laid_out_as(g, t) for g, t in zip(grads, inputs, strict=True)), grad_bias)


@_backward.register_fake
def _(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    position_bias: Tensor | None,
    num_heads: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_bias = (
        query.new_empty(0)
        if position_bias is None
        else torch.empty_like(position_bias, memory_format=torch.contiguous_format)
    )
    return (*map(torch.empty_like, (query, key, value, offsets)), grad_bias)


def _setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.num_heads, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    *grads, grad_bias = _backward(grad_output, *ctx.saved_tensors, ctx.num_heads, ctx.backend)
    return (*grads, None if ctx.saved_tensors[-1] is None else grad_bias, None, None)


_forward.register_autograd(_autograd, setup_context=_setup_context)
