"""Layer normalisation and projections of a map, as one PyTorch operator: schema, gradient, shapes.

The computation itself is that of one of the :mod:`lda_aqu.ops.backends`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import plain
from .autocast import dtype_under_autocast
from .backends import check_backend, choose_backend
from .exporting import is_exporting
from .memory_format import laid_out_as


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
    alone and computes it anew. Not differentiable twice. The normalisation is in float32 at least,
    projections in the dtype of the results or better. While a model is traced or exported to ONNX,
    the standard operators of the plain backend take the operator's place.

    Args:
        x: (N, C, H, W), floating point, in any strides.
        norm_weight: (C).
        norm_bias: (C).
        weights: one or more of (D, C, 1, 1), D as they please.
        backend: a name in :data:`lda_aqu.ops.BACKENDS`, or "auto" for the best that can run.

    Returns:
        For each of the weights (N, D, H, W), channels-last, with the dtype of ``x``, or that which
        autocast has for convolutions.

    Raises:
        InputError: unknown backend.
        RuntimeError: shapes, dtypes or devices do not fit one another, or the backend that was
            asked for cannot run.
    """
    check_backend(backend)
    inputs = (x, norm_weight, norm_bias, list(weights), dtype_under_autocast(x))
    if is_exporting():
        # Unchecked: sizes are tensors while a graph is traced.
        return plain.normalized_projection.forward(*inputs)
    return _forward(*inputs, backend)


def _check(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weights: Sequence[Tensor]) -> None:
    """Raise RuntimeError unless the inputs fit the schema. Works on fake tensors."""
    torch._check(
        x.dim() == 4 and len(weights) > 0,
        lambda: f"expected a 4-d map and weights, got {tuple(x.shape)} and {len(weights)} weights",
    )
    channels = x.shape[1]
    for parameter in (norm_weight, norm_bias):
        torch._check(
            tuple(parameter.shape) == (channels,),
            lambda p=parameter: f"expected a parameter {(channels,)}, got {tuple(p.shape)}",
        )
    for weight in weights:
        torch._check(
            weight.dim() == 4 and tuple(weight.shape[1:]) == (channels, 1, 1),
            lambda w=weight: f"expected weights (D, {channels}, 1, 1), got {tuple(w.shape)}",
        )
    for tensor in (x, norm_weight, norm_bias, *weights):
        torch._check(
            tensor.is_floating_point() and tensor.device == x.device,
            lambda: "expected floating-point tensors on one device",
        )


@torch.library.custom_op("lda_aqu::project_normalized", mutates_args=())
def _forward(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Sequence[Tensor],
    dtype: torch.dtype,
    backend: str,
) -> list[Tensor]:
    _check(x, norm_weight, norm_bias, weights)
    compute = choose_backend(backend, x.device).normalized_projection.forward
    outputs = compute(x, norm_weight, norm_bias, weights, dtype)
    return [output.contiguous(memory_format=torch.channels_last) for output in outputs]


@_forward.register_fake
def _(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Sequence[Tensor],
    dtype: torch.dtype,
    backend: str,
) -> list[Tensor]:
    _check(x, norm_weight, norm_bias, weights)
    return [
        torch.empty(
            (x.shape[0], weight.shape[0], *x.shape[2:]),
            dtype=dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        for weight in weights
    ]


@torch.library.custom_op("lda_aqu::project_normalized_backward", mutates_args=())
def _backward(
    grads: Sequence[Tensor],
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Sequence[Tensor],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    compute = choose_backend(backend, x.device).normalized_projection.backward
    grad_x, grad_weight, grad_bias, grad_weights = compute(
        grads, x, norm_weight, norm_bias, weights
    )
    return (
        laid_out_as(grad_x, x),
        grad_weight,
        grad_bias,
        [laid_out_as(g, w) for g, w in zip(grad_weights, weights, strict=True)],
    )


@_backward.register_fake
def _(
    grads: Sequence[Tensor],
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Sequence[Tensor],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    parameters = map(torch.empty_like, (norm_weight, norm_bias))
    return (torch.empty_like(x), *parameters, [torch.empty_like(weight) for weight in weights])


def _setup_context(ctx, inputs: tuple, output: list[Tensor]) -> None:
    *tensors, weights, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *weights)


def _autograd(ctx, grads: list[Tensor]) -> tuple[Tensor | list[Tensor] | None, ...]:
    x, norm_weight, norm_bias, *weights = ctx.saved_tensors
    return (*_backward(grads, x, norm_weight, norm_bias, weights, ctx.backend), None, None)


_forward.register_autograd(_autograd, setup_context=_setup_context)
