"""Local deformable attention as one operator: what it takes and returns, for any backend."""

import math
from typing import Any

import torch
from torch import Tensor

from .layout import Layout, like, memory_format_of
from .operator import Operator, check, check_tensors
from .plain import attention as plain


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
    not stored; the backward pass keeps the inputs alone and computes the rest anew. While a model
    is traced or exported to ONNX, under transforms of torch.func and in derivatives of second and
    higher order, the standard operators of the plain backend take the operator's place.

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
        RuntimeError: shapes, dtypes or devices do not fit one another, anything but the batch is
            empty, or the backend that was asked for cannot run.
    """
    inputs = (query, key, value, offsets, position_bias, num_heads)
    (output,) = _OPERATOR(*inputs, backend=backend)
    return output


def _results(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    position_bias: Tensor | None,
    num_heads: int,
) -> list[Layout]:
    def shapes() -> str:
        names = ("query", "key", "value", "offsets")
        tensors = zip(names, (query, key, value, offsets), strict=True)
        return ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors) + f", heads {num_heads}"

    check(
        query.dim() == key.dim() == value.dim() == 4 and offsets.dim() == 6,
        lambda: f"expected 4-d query, key and value and 6-d offsets, got {shapes()}",
    )
    batch, depth, *output_size = query.shape
    channels = value.shape[1]
    _, groups, points, pair, *offsets_size = offsets.shape
    check(
        key.shape[0] == batch
        and value.shape[0] == batch
        and offsets.shape[0] == batch
        and key.shape[1] == depth
        and key.shape[2:] == value.shape[2:]
        and offsets_size == output_size
        and pair == 2,
        lambda: f"shapes do not fit one another: {shapes()}",
    )
    check(
        math.isqrt(points) ** 2 == points and points % 2 == 1,
        lambda: f"offsets need k² points with k odd, got {points}",
    )
    check(
        num_heads > 0
        and groups > 0
        and depth % num_heads == 0
        and channels % num_heads == 0
        and depth % groups == 0
        and channels % groups == 0,
        lambda: f"channels are not multiples of heads and groups: {shapes()}",
    )
    if position_bias is not None:
        expected = (num_heads, points, depth // num_heads)
        check(
            tuple(position_bias.shape) == expected,
            lambda: f"expected position_bias {expected}, got {tuple(position_bias.shape)}",
        )
    check_tensors(query, key, value, offsets, position_bias)
    return [Layout((batch, channels, *output_size), value.dtype, memory_format_of(value))]


def _grads(*inputs: Any) -> list[Layout]:
    query, key, value, offsets, position_bias, _ = inputs
    return [
        like(query, torch.channels_last),
        like(key, torch.channels_last),
        like(value, memory_format_of(value)),
        like(offsets),
        *([] if position_bias is None else [like(position_bias)]),
    ]


_OPERATOR = Operator(
    "local_deformable_attention", "attention", _results, plain.local_deformable_attention, _grads
)
