"""Layer normalisation and 1 x 1 convolutions as one operator: what it takes and returns."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .autocast import dtype_under_autocast
from .layout import Layout, like, memory_format_of
from .operator import Operator, check, check_shapes, check_tensors
from .plain import projection as plain


def project_normalized(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Sequence[Tensor],
    backend: str = "auto",
) -> list[Tensor]:
    """Normalise over the channels of each pixel, and apply 1 x 1 convolutions without bias.

    As ``conv2d(layer_norm(x), weight)`` for each of the weights (epsilon 1e-5), by which LDA-AQU
    finds its queries and keys. The normalised map is not stored: the backward pass keeps the inputs
    alone and computes it anew. The normalisation is in float32 at least, projections in the dtype
    of the results or better. While a model is traced or exported to ONNX, under transforms of
    torch.func and in derivatives of second and higher order, the standard operators of the plain
    backend take the operator's place.

    Args:
        x: (N, C, H, W), floating point, in any strides.
        norm_weight: (C).
        norm_bias: (C).
        weights: one or more of (D, C, 1, 1), each with a D of its own.
        backend: a name in :data:`lda_aqu.ops.BACKENDS`, or "auto" for the best that can run.

    Returns:
        For each of the weights (N, D, H, W), channels-last, with the dtype of ``x``, or that which
        autocast has for convolutions.

    Raises:
        InputError: unknown backend.
        RuntimeError: shapes, dtypes or devices do not fit one another, anything but the batch is
            empty, or the backend that was asked for cannot run.
    """
    weight = weights[0] if len(weights) == 1 else torch.cat(tuple(weights))
    widths = [len(weight) for weight in weights]
    dtype = dtype_under_autocast(x)
    return _OPERATOR(x, norm_weight, norm_bias, weight, widths, dtype, backend=backend)


def _results(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    widths: Sequence[int],
    dtype: torch.dtype,
) -> list[Layout]:
    """The rows of ``weight`` are those of several projections, as many as ``widths`` says."""
    check(x.dim() == 4, lambda: f"expected a 4-d map, got {tuple(x.shape)}")
    batch, channels, *size = x.shape
    check_shapes(
        norm_weight=(norm_weight, (channels,)),
        norm_bias=(norm_bias, (channels,)),
        weights=(weight, (sum(widths), channels, 1, 1)),
    )
    check_tensors(x, norm_weight, norm_bias, weight)
    return [Layout((batch, width, *size), dtype, torch.channels_last) for width in widths]


def _grads(*inputs: Any) -> list[Layout]:
    x, norm_weight, norm_bias, weight, *_ = inputs
    return [like(x, memory_format_of(x)), like(norm_weight), like(norm_bias), like(weight)]


_OPERATOR = Operator("project_normalized", "projection", _results, plain.project_normalized, _grads)
