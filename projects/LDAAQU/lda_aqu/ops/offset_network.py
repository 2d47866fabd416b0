"""The network that predicts the offsets as one operator: what it takes and returns."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .autocast import dtype_under_autocast
from .layout import Layout, like, memory_format_of
from .operator import Operator, check, check_shapes, check_tensors
from .plain import offset_network as plain


def predict_offsets(
    query: Tensor,
    depthwise: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    num_groups: int,
    offset_range: float,
    output_size: Sequence[int] | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Predict where around each output pixel LDA-AQU samples.

    If there is an output size, the query is first resized to it, bilinearly with aligned corners,
    as ``interpolate(query, output_size, mode="bilinear", align_corners=True)``.

    The d channels of the query are g contiguous groups. One network, shared by all, maps each to
    the offsets of its k² points: a depthwise 3 x 3 convolution, layer normalisation over the
    channels (epsilon 1e-5), GELU, a k_e x k_e convolution with bias, and offset_range * tanh.
    Convolutions are padded with zeros. Du et al., "LDA-AQU: Adaptive Query-guided Upsampling via
    Local Deformable Attention", ACM MM 2024.

    Nothing in between is stored: the backward pass keeps the query, after it was resized, the
    parameters and the offsets, and computes the rest anew. Normalisation and tanh are in float32 at
    least, convolutions in the dtype of the query or better; under autocast that is the dtype which
    autocast has for convolutions. While a model is traced or exported to ONNX, under transforms of
    torch.func and in derivatives of second and higher order, the standard operators of the plain
    backend take the operator's place.

    Args:
        query: (N, d, H, W), floating point; d is a multiple of g.
        depthwise: (d / g, 1, 3, 3).
        norm_weight: (d / g).
        norm_bias: (d / g).
        conv_weight: (2 k², d / g, k_e, k_e), with k_e odd.
        conv_bias: (2 k²).
        num_groups: g.
        offset_range: the largest offset, in output pixels; finite and at least 0.
        output_size: (Y, X), or None for (H, W), without resizing.
        backend: a name in :data:`lda_aqu.ops.BACKENDS`, or "auto" for the best that can run.

    Returns:
        The offsets (N, g, k², 2, Y, X), contiguous: (dy, dx) in output pixels, float32, or float64
        if the query is. Then the query that they were predicted from, (N, d, Y, X): channels-last
        if it was resized, in its dtype or that which autocast has for convolutions.

    Raises:
        InputError: unknown backend.
        RuntimeError: shapes, dtypes or devices do not fit one another, anything but the batch is
            empty, the range is negative or not finite, or the backend that was asked for cannot
            run.
    """
    if query.dtype != (dtype := dtype_under_autocast(query)):
        query = query.to(dtype)
    parameters = (depthwise, norm_weight, norm_bias, conv_weight, conv_bias)
    settings = (num_groups, offset_range, output_size)
    offsets, *resized = _OPERATOR(query, *parameters, *settings, backend=backend)
    return offsets, *(resized or [query])


def _results(
    query: Tensor,
    depthwise: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    num_groups: int,
    offset_range: float,
    output_size: Sequence[int] | None,
) -> list[Layout]:
    """The offsets and, if there is an output size, the resized query."""
    check(
        query.dim() == 4 and num_groups > 0 and query.shape[1] % num_groups == 0,
        lambda: f"expected a 4-d query of {num_groups} groups, got {tuple(query.shape)}",
    )
    check(
        math.isfinite(offset_range) and offset_range >= 0,
        lambda: f"expected a finite offset_range of at least 0, got {offset_range}",
    )
    check(
        output_size is None or (len(output_size) == 2 and all(side > 0 for side in output_size)),
        lambda: f"expected a size (Y, X), got {output_size}",
    )
    batch, depth, *input_size = query.shape
    channels = depth // num_groups
    check(
        conv_weight.dim() == 4 and conv_weight.shape[2] % 2 == 1,
        lambda: f"expected an odd convolution, got weights {tuple(conv_weight.shape)}",
    )
    outputs, _, kernel_size, _ = conv_weight.shape
    points = outputs // 2
    check(
        outputs == 2 * math.isqrt(points) ** 2 and points % 2 == 1,
        lambda: f"the convolution needs 2 k² outputs with k odd, got {outputs}",
    )
    check_shapes(
        depthwise=(depthwise, (channels, 1, 3, 3)),
        norm_weight=(norm_weight, (channels,)),
        norm_bias=(norm_bias, (channels,)),
        conv_weight=(conv_weight, (outputs, channels, kernel_size, kernel_size)),
        conv_bias=(conv_bias, (outputs,)),
    )
    check_tensors(query, depthwise, norm_weight, norm_bias, conv_weight, conv_bias)
    shape = (batch, num_groups, points, 2, *(output_size or input_size))
    offsets = Layout(shape, torch.promote_types(query.dtype, torch.float32))
    if not output_size:
        return [offsets]
    return [offsets, Layout((batch, depth, *output_size), query.dtype, torch.channels_last)]


def _grads(
    offsets: Tensor,
    resized: Tensor,
    depthwise: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    num_groups: int,
    offset_range: float,
    input_size: Sequence[int] | None,
) -> list[Layout]:
    """Of the query, which has its ``input_size`` where it was resized, and of the parameters."""
    if input_size:
        shape = (*resized.shape[:2], *input_size)
        query = Layout(shape, resized.dtype, torch.channels_last)
    else:
        query = like(resized, memory_format_of(resized))
    return [query, *map(like, (depthwise, norm_weight, norm_bias, conv_weight, conv_bias))]


def _save(inputs: tuple, results: Sequence[Tensor]) -> tuple:
    query, *others, output_size = inputs
    offsets, *resized = results
    return offsets, *(resized or [query]), *others, query.shape[2:] if output_size else None


_OPERATOR = Operator(
    "predict_offsets", "offset_network", _results, plain.predict_offsets, _grads, _save
)
