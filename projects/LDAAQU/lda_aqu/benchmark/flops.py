"""Counting the FLOPs of an upsampler or a model, with no operator left out silently.

Counts are fvcore's: one multiply-add is one FLOP, as in the tables of papers. What fvcore does not
know is counted here: one FLOP for each result of an elementwise function, one for each element
that is summed, four (bilinear) or sixteen (bicubic) for each interpolated value. Operators that
move, compare, sort or index do no arithmetic and count zero. This project's own operators are
counted by their shapes.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import Handle, get_shape
from torch import Tensor, nn

from ..ops.exporting import operators_kept_in_traces

# Names of aten's operators, with spaces between them.
ELEMENTWISE = """
    abs add addcdiv addcmul cos div elu exp expm1 gelu hardtanh lerp leaky_relu log log1p log2
    maximum minimum mul neg pow reciprocal relu6 rsqrt rsub sigmoid sign silu sin softplus sqrt
    square sub tanh
"""
REDUCTIONS = "cumsum linalg_vector_norm mean norm prod sum"
NO_ARITHMETIC = """
    Bool Float Int IntImplicit __or__ alias amax amin any all arange argmax argsort as_strided
    bitwise_and broadcast_tensors channel_shuffle clamp_max clamp_min clone col2im constant_pad_nd
    diff dim empty_like expand_as feature_dropout fill fill_ flip floor_divide im2col index_select
    is_floating_point isfinite le len linspace logical_and logical_not logical_or lt masked_select
    max_pool2d meshgrid movedim moveaxis ne new_ones nonzero_numpy numel numpy_T one_hot ones_like
    pad pixel_shuffle pixel_unshuffle reflection_pad2d repeat repeat_interleave replication_pad2d
    reshape_as round ceil scalar_tensor scatter scatter_ sort swapaxes take_along_dim tensor tile
    topk tril triu unflatten unfold view_as where zero_
"""


def _per_result(flops: int) -> Handle:
    """So many FLOPs for each element of the first output."""
    return lambda inputs, outputs: flops * _size(outputs[0])


def _per_input(inputs: list[Any], outputs: list[Any]) -> int:
    """One FLOP for each element of the first input."""
    return _size(inputs[0])


def _size(value: Any) -> int:
    return prod(get_shape(value) or ())  # a number has no shape


def _local_deformable_attention(inputs: list[Any], outputs: list[Any]) -> Counter:
    """Of query, key, value, offsets, bias, heads: see :mod:`lda_aqu.ops` for the shapes."""
    batch, depth, height, width = get_shape(inputs[0])
    channels = get_shape(inputs[2])[1]
    groups, points = get_shape(inputs[3])[1:3]
    bias = get_shape(inputs[4])
    heads = inputs[5].toIValue()
    per_point = (
        2 * groups  # the two coordinates: offset + base, scaled to the input grid
        + 4 * (depth + channels)  # bilinear reads
        + depth  # query . key
        + (depth if bias else 0)  # key + bias
        + 4 * heads  # scale; softmax: exponential, sum, division
        + channels  # the weighted sum of the values
    )
    return Counter({"local_deformable_attention": batch * height * width * points * per_point})


def _predict_offsets(inputs: list[Any], outputs: list[Any]) -> Counter:
    """Of query, network, groups, range, size or None: as by the operators it stands for."""
    batch, depth, *query_size = get_shape(inputs[0])
    outputs_of_conv, _, *kernel = get_shape(inputs[4])
    groups, points = inputs[6].toIValue(), outputs_of_conv // 2
    size = [side.toIValue() for side in inputs[8].node().inputs()]  # none of a constant None
    per_pixel = (
        depth * 9  # depthwise convolution
        + depth * 5  # normalisation
        + depth  # GELU
        + depth * prod(kernel) * 2 * points  # convolution
        + groups * 2 * points * 2  # tanh and range
    )
    pixels = batch * prod(size or query_size)
    resize = {"upsample_bilinear2d": 4 * depth * pixels} if size else {}
    return Counter({"predict_offsets": pixels * per_pixel, **resize})


def _project_normalized(inputs: list[Any], outputs: list[Any]) -> Counter:
    """Of a map, norm parameters and a list of weights: as by the operators it stands for."""
    weights = sum(prod(get_shape(weight)) for weight in inputs[3].node().inputs())
    batch, channels, height, width = get_shape(inputs[0])
    per_pixel = channels * 5 + weights  # normalisation, projections
    return Counter({"project_normalized": batch * height * width * per_pixel})


def _avg_pool2d(inputs: list[Any], outputs: list[Any]) -> int:
    kernel = [side.toIValue() for side in inputs[1].node().inputs()]
    return _size(outputs[0]) * prod(kernel if len(kernel) == 2 else 2 * kernel)


def _reassemble(inputs: list[Any], outputs: list[Any]) -> int:
    """Of x and weights (N, g, k², Y, X): k² multiply-adds for each element of the output."""
    return _size(outputs[0]) * get_shape(inputs[1])[2]


def _similarity(inputs: list[Any], outputs: list[Any]) -> int:
    """Of x (N, C, H, W) and query: C / g multiply-adds for each element of (N, g, k², Y, X)."""
    return _size(outputs[0]) * get_shape(inputs[0])[1] // get_shape(outputs[0])[1]


HANDLES: dict[str, Handle | None] = {
    **{
        f"aten::{name}{in_place}": _per_result(1)
        for name in ELEMENTWISE.split()
        for in_place in ("", "_")
    },
    **{f"aten::{name}": _per_input for name in REDUCTIONS.split()},
    **{f"aten::{name}": None for name in NO_ARITHMETIC.split()},
    "aten::avg_pool2d": _avg_pool2d,
    "aten::softmax": _per_result(3),  # exponential, sum, division
    "aten::upsample_bicubic2d": _per_result(16),
    "aten::grid_sampler_2d": _per_result(4),
    "lda_aqu::local_deformable_attention": _local_deformable_attention,
    "lda_aqu::predict_offsets": _predict_offsets,
    "lda_aqu::project_normalized": _project_normalized,
    "lda_aqu::reassemble": _reassemble,
    "lda_aqu::similarity": _similarity,
    "torchvision::nms": None,
    "torchvision::roi_align": _per_result(4),
}

# Functions that Detectron2 compiles when a model is traced: what it does with boxes and masks that
# it has found, next to nothing beside the network.
SCRIPTED = {
    "_batched_nms_coordinate_trick",
    "_batched_nms_vanilla",
    "_convert_boxes_to_pooler_format",
    "_create_zeros",
    "move_device_like",
    "paste_masks_in_image",
}


@dataclass(frozen=True)
class FlopCount:
    """FLOPs by operator, and the operators, with how often they ran, that were not counted."""

    by_operator: dict[str, float]
    uncounted: dict[str, int]

    @property
    def total(self) -> float:
        """The sum over all counted operators."""
        return sum(self.by_operator.values())

    @property
    def is_complete(self) -> bool:
        """Whether every operator was counted."""
        return not self.uncounted


def count_module_flops(module: nn.Module, inputs: Iterable[Tensor]) -> FlopCount:
    """Count the FLOPs of ``module(*inputs)``, which is run once."""
    return _count(FlopCountAnalysis(module, tuple(inputs)))


def count_model_flops(model: nn.Module, images: list[dict[str, Any]]) -> FlopCount:
    """Count the FLOPs of a Detectron2 model on images in its input format, which is run once."""
    from detectron2.utils.analysis import FlopCountAnalysis as ModelFlopCountAnalysis

    return _count(ModelFlopCountAnalysis(model, images))


def _count(analysis: FlopCountAnalysis) -> FlopCount:
    unknown = Counter()

    def scripted(inputs: list[Any], outputs: list[Any]) -> int:
        name = inputs[0].node().s("name")
        if name not in SCRIPTED:
            unknown[name] += 1
        return 0

    analysis.set_op_handle(**HANDLES, **{"prim::CallFunction": scripted})
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    with operators_kept_in_traces():
        by_operator = {name: flops for name, flops in analysis.by_operator().items() if flops}
    return FlopCount(by_operator, dict(unknown + analysis.unsupported_ops()))
