"""Counting the FLOPs of whatever runs on tensors, with no operator left out silently.

One multiply-add is one FLOP, as in the tables of papers; those of convolutions and matrix products
are PyTorch's counts. Beside them: one FLOP for each result of an elementwise function, one for each
element that is summed, four (bilinear) or sixteen (bicubic) for each interpolated value. What
moves, compares, selects, sorts or indexes does no arithmetic and counts zero. This project's own
operators count as the operators that they stand for.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Operators of aten; those in place count alike.
NO_ARITHMETIC = """
    _to_copy _unique2 _unsafe_view amax cat ceil clamp clone constant_pad_nd copy empty_like fill
    flip floor full_like gather im2col index index_put index_select lift_fresh masked_fill max
    max_pool2d_with_indices maximum min minimum new_empty new_full new_ones new_zeros ones_like
    pixel_shuffle relu repeat repeat_interleave round scatter sort stack topk where zero zeros_like
"""
SUMS = "_adaptive_avg_pool2d cumsum linalg_vector_norm mean norm prod sum"
PER_RESULT = {
    **dict.fromkeys(NO_ARITHMETIC.split(), 0),
    "_softmax": 3,  # exponential, sum, division
    "native_group_norm": 5,
    "native_layer_norm": 5,
    "grid_sampler_2d": 4,
    "cudnn_grid_sampler": 4,
    "_upsample_nearest_exact2d": 1,
    "upsample_nearest2d": 1,
    "upsample_bilinear2d": 4,
    "upsample_bicubic2d": 16,
    "leaky_relu": 1,  # these two are elementwise, which older PyTorch does not say
    "hardtanh": 1,
    "nms": 0,
    "roi_align": 4,
}
"""FLOPs for each element of the first output."""

Arguments = dict[str, Any]  # of an operator, by the names of its schema


def _local_deformable_attention(arguments: Arguments, _: Tensor) -> int:
    batch, depth, height, width = arguments["query"].shape
    channels = arguments["value"].shape[1]
    groups, points = arguments["offsets"].shape[1:3]
    per_point = (
        2 * groups  # the two coordinates: offset + base, scaled to the input grid
        + 4 * (depth + channels)  # bilinear reads
        + depth * (1 if arguments["position_bias"] is None else 2)  # query . (key + bias)
        + 4 * arguments["num_heads"]  # scale; softmax: exponential, sum, division
        + channels  # the weighted sum of the values
    )
    return batch * height * width * points * per_point


def _predict_offsets(arguments: Arguments, _: Tensor) -> int:
    batch, depth, *query_size = arguments["query"].shape
    outputs_of_conv, _, *kernel = arguments["conv_weight"].shape
    size = arguments["output_size"]
    per_pixel = (
        depth * (4 * bool(size) + 9 + 5 + 1)  # resizing, depthwise convolution, norm, GELU
        + depth * prod(kernel) * outputs_of_conv  # convolution
        + arguments["num_groups"] * outputs_of_conv * 2  # tanh and range
    )
    return batch * prod(size or query_size) * per_pixel


def _project_normalized(arguments: Arguments, _: Tensor) -> int:
    batch, channels, height, width = arguments["x"].shape
    per_pixel = channels * 5 + arguments["weight"].numel()  # normalisation, projections
    return batch * height * width * per_pixel


FORMULAS: dict[str, Callable[[Arguments, Tensor], int]] = {
    **dict.fromkeys(SUMS.split(), lambda arguments, out: arguments["self"].numel()),
    "avg_pool2d": lambda arguments, out: out.numel() * prod(arguments["kernel_size"]),
    **dict.fromkeys(
        ("cudnn_batch_norm", "native_batch_norm"),
        lambda arguments, out: out.numel() * (5 if arguments["training"] else 2),
    ),
    "local_deformable_attention": _local_deformable_attention,
    "predict_offsets": _predict_offsets,
    "project_normalized": _project_normalized,
    # Of weights (N, g, k², Y, X): k² for each result.
    "reassemble": lambda arguments, out: out.numel() * arguments["weights"].shape[2],
    # Of x (N, C, H, W), a result (N, g, k², Y, X): C / g for each result.
    "similarity": lambda arguments, out: out.numel() * arguments["x"].shape[1] // out.shape[1],
}
"""FLOPs from the arguments and the first output."""


@dataclass(frozen=True)
class FlopCount:
    """FLOPs by operator, and the operators, with how often they ran, that were not counted."""

    by_operator: dict[str, int]
    uncounted: dict[str, int]

    @property
    def total(self) -> int | None:
        """The sum over all operators; None where some were not counted."""
        return None if self.uncounted else sum(self.by_operator.values())


def count_flops(run: Callable[[], Any]) -> FlopCount:
    """Count the FLOPs of ``run()``, a forward pass, which is run once."""
    with _Counting() as counting:
        run()
    return FlopCount(dict(+counting.flops), dict(counting.uncounted))


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.removesuffix("_")
        flops = _flops(func, name, args, kwargs or {}, output)
        if flops is None:
            self.uncounted[name] += 1
        else:
            self.flops[name] += flops
        return output


def _flops(
    func: torch._ops.OpOverload, name: str, args: tuple[Any, ...], kwargs: Arguments, output: Any
) -> int | None:
    """FLOPs of one call; None where they are not known."""
    if func.overloadpacket in flop_registry:  # where a multiply-add is two
        return flop_registry[func.overloadpacket](*args, **kwargs, out_val=output) // 2
    results = [leaf for leaf in tree_leaves(output) if _is_float(leaf)]
    is_view = func.is_view or torch.Tag.inplace_view in func.tags
    if is_view or not results or not any(map(_is_float, tree_leaves((args, kwargs)))):
        return 0
    if name in FORMULAS:
        names = (argument.name for argument in func._schema.arguments)
        return FORMULAS[name]({**dict(zip(names, args, strict=False)), **kwargs}, results[0])
    per_result = PER_RESULT.get(name, 1 if torch.Tag.pointwise in func.tags else None)
    return per_result and per_result * results[0].numel()


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
