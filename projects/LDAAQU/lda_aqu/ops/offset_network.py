"""The network that predicts the offsets, as one PyTorch operator: its schema, gradient, shapes.

The computation itself is that of one of the :mod:`lda_aqu.ops.backends`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import plain
from .autocast import dtype_under_autocast
from .backends import check_backend, choose_backend
from .exporting import is_exporting
from .memory_format import empty_of_size, laid_out_as


def predict_offsets(
    query: Tensor,
    depthwise: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    num_groups: int,
    offset_range: float,
    backend: str = "auto",
) -> Tensor:
    """Predict where around each output pixel LDA-AQU samples.

    The d channels of the query are g contiguous groups. One network, shared by all, maps each to
    the offsets of its k² points: a depthwise 3 x 3 convolution, layer normalisation over the
    channels (epsilon 1e-5), GELU, a k_e x k_e convolution with bias, and offset_range * tanh.
    Convolutions are padded with zeros. Du et al., "LDA-AQU: Adaptive Query-guided Upsampling via
    Local Deformable Attention", ACM MM 2024.

    Nothing in between is stored: the backward pass keeps the inputs and the offsets alone and
    computes the rest anew. Not differentiable twice. Normalisation and tanh are in float32 at
    least, convolutions in the dtype of the query or better; under autocast that is the dtype which
    autocast has for convolutions. While a model is traced or exported to ONNX, the standard
    operators of the plain backend take the operator's place.

    Args:
        query: (N, d, Y, X), floating point; d is a multiple of g.
        depthwise: (d / g, 1, 3, 3).
        norm_weight: (d / g).
        norm_bias: (d / g).
        conv_weight: (2 k², d / g, k_e, k_e), with k_e odd.
        conv_bias: (2 k²).
        num_groups: g.
        offset_range: the largest offset, in output pixels; at least 0.
        backend: a name in :data:`lda_aqu.ops.BACKENDS`, or "auto" for the best that can run.

    Returns:
        (N, g, k², 2, Y, X), contiguous: (dy, dx) in output pixels. float32, or float64 if the query
        is.

    Raises:
        InputError: unknown backend.
        RuntimeError: shapes, dtypes or devices do not fit one another, or the backend that was
            asked for cannot run.
    """
    parameters = (depthwise, norm_weight, norm_bias, conv_weight, conv_bias)
    (offsets,) = _predict(query, parameters, num_groups, offset_range, None, backend)
    return offsets


def resize_and_predict_offsets(
    query: Tensor,
    size: Sequence[int],
    depthwise: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    num_groups: int,
    offset_range: float,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Resize the query, bilinearly with aligned corners, and predict the offsets from it.

    As ``interpolate(query, size, mode="bilinear", align_corners=True)`` and
    :func:`predict_offsets`, in one pass over memory; the backward pass keeps the resized query in
    the place of the query.

    Args:
        query: (N, d, H, W), floating point; d is a multiple of g.
        size: (Y, X), of the output.
        depthwise: (d / g, 1, 3, 3); this and what follows is as for :func:`predict_offsets`.
        norm_weight: (d / g).
        norm_bias: (d / g).
        conv_weight: (2 k², d / g, k_e, k_e).
        conv_bias: (2 k²).
        num_groups: g.
        offset_range: the largest offset, in output pixels.
        backend: what computes it.

    Returns:
        The query (N, d, Y, X), channels-last, in its dtype or that which autocast has for
        convolutions, and the offsets (N, g, k², 2, Y, X) as of :func:`predict_offsets`.

    Raises:
        InputError: unknown backend.
        RuntimeError: shapes, dtypes or devices do not fit one another, a size is not positive, or
            the backend that was asked for cannot run.
    """
    parameters = (depthwise, norm_weight, norm_bias, conv_weight, conv_bias)
    offsets, resized = _predict(query, parameters, num_groups, offset_range, size, backend)
    return resized, offsets


def _predict(
    query: Tensor,
    parameters: tuple[Tensor, ...],
    num_groups: int,
    offset_range: float,
    size: Sequence[int] | None,
    backend: str,
) -> list[Tensor]:
    check_backend(backend)
    if query.dtype != (dtype := dtype_under_autocast(query)):
        query = query.to(dtype)
    if is_exporting():
        # Unchecked: sizes are tensors while a graph is traced.
        return plain.offset_network.forward(query, *parameters, num_groups, offset_range, size)
    if size is not None and torch.jit.is_tracing():
        size = [int(side) for side in size]  # tensors, in a trace, which a list of integers has not
    return _forward(query, *parameters, num_groups, offset_range, size, backend)


def _check(
    query: Tensor,
    depthwise: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    num_groups: int,
    size: Sequence[int] | None,
) -> None:
    """Raise RuntimeError unless the inputs fit the schema. Works on fake tensors."""
    torch._check(
        query.dim() == 4 and num_groups > 0 and query.shape[1] % num_groups == 0,
        lambda: f"expected a 4-d query of {num_groups} groups, got {tuple(query.shape)}",
    )
    torch._check(
        size is None or (len(size) == 2 and all(side > 0 for side in (*size, *query.shape[2:]))),
        lambda: f"expected a size (Y, X), got {size} for a query {tuple(query.shape)}",
    )
    channels = query.shape[1] // num_groups
    torch._check(
        conv_weight.dim() == 4 and conv_weight.shape[2] % 2 == 1,
        lambda: f"expected an odd convolution, got weights {tuple(conv_weight.shape)}",
    )
    outputs, _, kernel_size, _ = conv_weight.shape
    points = outputs // 2
    torch._check(
        outputs == 2 * math.isqrt(points) ** 2 and points % 2 == 1,
        lambda: f"the convolution needs 2 k² outputs with k odd, got {outputs}",
    )
    parameters = (depthwise, norm_weight, norm_bias, conv_weight, conv_bias)
    expected = (
        (channels, 1, 3, 3),
        (channels,),
        (channels,),
        (outputs, channels, kernel_size, kernel_size),
        (outputs,),
    )
    for parameter, shape in zip(parameters, expected, strict=True):
        torch._check(
            tuple(parameter.shape) == shape,
            lambda p=parameter, s=shape: f"expected a parameter {s}, got {tuple(p.shape)}",
        )
    for tensor in (query, *parameters):
        torch._check(
            tensor.is_floating_point() and tensor.device == query.device,
            lambda: "expected floating-point tensors on one device",
        )


@torch.library.custom_op("lda_aqu::predict_offsets", mutates_args=())
def _forward(
    query: Tensor,
    depthwise: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    num_groups: int,
    offset_range: float,
    size: Sequence[int] | None,
    backend: str,
) -> list[Tensor]:
    """The offsets and, if there is a size to which the query is resized, the resized query."""
    parameters = (depthwise, norm_weight, norm_bias, conv_weight, conv_bias)
    _check(query, *parameters, num_groups, size)
    compute = choose_backend(backend, query.device).offset_network.forward
    return compute(query, *parameters, num_groups, offset_range, size)


@_forward.register_fake
def _(
    query: Tensor,
    depthwise: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    num_groups: int,
    offset_range: float,
    size: Sequence[int] | None,
    backend: str,
) -> list[Tensor]:
    _check(query, depthwise, norm_weight, norm_bias, conv_weight, conv_bias, num_groups, size)
    batch, points = query.shape[0], conv_weight.shape[0] // 2
    offsets = query.new_empty(
        (batch, num_groups, points, 2, *(size or query.shape[2:])),
        dtype=torch.promote_types(query.dtype, torch.float32),
    )
    return [offsets, empty_of_size(query, size)] if size else [offsets]


@torch.library.custom_op("lda_aqu::predict_offsets_backward", mutates_args=())
def _backward(
    grads: Sequence[Tensor],
    offsets: Tensor,
    query: Tensor,
    depthwise: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    num_groups: int,
    offset_range: float,
    size: Sequence[int] | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A size is (H, W), before the resize; ``query`` and the second of ``grads`` are after it."""
    inputs = (query, depthwise, norm_weight, norm_bias, conv_weight, conv_bias)
    compute = choose_backend(backend, query.device).offset_network.backward
    grad_query, *others = compute(grads, offsets, *inputs, num_groups, offset_range, size)
    if size:
        grad_query = grad_query.contiguous(memory_format=torch.channels_last)
    else:
        grad_query = laid_out_as(grad_query, query)
    return (grad_query, *map(laid_out_as, others, inputs[1:]))


@_backward.register_fake
def _(
    grads: Sequence[Tensor],
    offsets: Tensor,
    query: Tensor,
    depthwise: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    num_groups: int,
    offset_range: float,
    size: Sequence[int] | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    parameters = (depthwise, norm_weight, norm_bias, conv_weight, conv_bias)
    grad_query = empty_of_size(query, size) if size else torch.empty_like(query)
    return (grad_query, *map(torch.empty_like, parameters))


def _setup_context(ctx, inputs: tuple, output: list[Tensor]) -> None:
    query, *parameters, ctx.num_groups, ctx.offset_range, size, ctx.backend = inputs
    ctx.size = tuple(query.shape[2:]) if size else None
    offsets, *resized = output
    ctx.save_for_backward(offsets, *(resized or [query]), *parameters)


def _autograd(ctx, grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    settings = (ctx.num_groups, ctx.offset_range, ctx.size, ctx.backend)
    grads_of_inputs = _backward(grads, *ctx.saved_tensors, *settings)
    return (*grads_of_inputs, None, None, None, None)


_forward.register_autograd(_autograd, setup_context=_setup_context)
