"""The offset network on GPUs: launches the kernels of :mod:`.offset_network_kernels`.

Forward one kernel resizes the query, one makes the hidden map, which is stored until the next, the
convolution, has read it. Backward the hidden map is made anew. Nothing is added by atomic
operations: gradients of parameters are summed up by programs over pixels of their own, then over
programs, and that of the resize is gathered; they are the same each time.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..layout import Layout, compute_dtype, like, memory_format_of
from ..plain.offset_network import EPSILON
from . import offset_network_kernels as kernels
from .launch import index_dtype, launch, triton_dtype
from .maps import MAX_SHARED_BYTES, MAX_TILE_CHANNELS, dense, parts, product_types, side, sum_parts


def unavailable(function: str, *inputs: Any) -> str:
    """Why a function cannot compute its inputs, or ""."""
    first = 2 if function == "predict_offsets_backward" else 0
    query, conv_weight = inputs[first], inputs[first + 4]
    outputs, channels = conv_weight.shape[:2]
    if max(outputs, channels) > MAX_TILE_CHANNELS:
        return f"groups have more than {MAX_TILE_CHANNELS} channels, or outputs"
    # What offsets_kernel multiplies: 16 pixels and all outputs.
    if side(channels) * (16 + side(outputs)) * query.itemsize > MAX_SHARED_BYTES:
        return f"{channels} channels of a group and {outputs} outputs take too much shared memory"
    return ""


def predict_offsets(
    query: Tensor,
    depthwise: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    num_groups: int,
    offset_range: float,
    output_size: Sequence[int] | None,
) -> list[Tensor]:
    """See :func:`.plain.offset_network.predict_offsets`."""
    parameters = (depthwise, norm_weight, norm_bias, conv_weight, conv_bias)
    results = []
    if output_size:
        shape = (*query.shape[:2], *output_size)
        resized = Layout(shape, query.dtype, torch.channels_last).empty(query.device)
        if resized.numel():
            _resize(query, resized)
        results.append(resized)
        query = resized
    shape = (len(query), num_groups, conv_weight.shape[0] // 2, 2, *query.shape[2:])
    offsets = Layout(shape, compute_dtype(query)).empty(query.device)
    if offsets.numel():
        _Call(query, parameters, num_groups, offset_range).forward(offsets)
    return [offsets, *results]


def predict_offsets_backward(
    grads: Sequence[Tensor],
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
) -> list[Tensor]:
    """See :func:`.plain.offset_network.predict_offsets_backward`."""
    parameters = (depthwise, norm_weight, norm_bias, conv_weight, conv_bias)
    if input_size:  # what keeps tensors for the backward pass need not keep their layout
        resized = resized.contiguous(memory_format=torch.channels_last)
    grad_query = like(resized, memory_format_of(resized)).empty(resized.device)
    results = [like(p).empty(p.device) for p in parameters]
    if resized.numel():
        call = _Call(resized, parameters, num_groups, offset_range)
        call.backward(grads, offsets, grad_query, results)
    else:
        for result in results:
            result.zero_()
    if input_size:
        grad = grad_query
        shape = (*resized.shape[:2], *input_size)
        grad_query = Layout(shape, resized.dtype, torch.channels_last).empty(resized.device)
        if grad.numel():
            _resize_backward(grad, grad_query)
    return [grad_query, *results]


def _resize(query: Tensor, resized: Tensor) -> None:
    """Write the resized query."""
    source, channels_last = dense(query)
    sizes = (*query.shape[2:], *resized.shape[2:])
    launch(
        kernels.resize_kernel,
        _grid_of(resized),
        *(source, resized, *sizes),
        read=query,
        width=query.shape[1],
        CHANNELS_LAST=channels_last,
        **_resize_constants(resized, sizes),
    )


def _resize_backward(grad: Tensor, grad_query: Tensor) -> None:
    """Write the gradient of the query from that of the resized query; both are channels-last."""
    sizes = (*grad_query.shape[2:], *grad.shape[2:])
    height, width, rows, columns = sizes
    most = (
        min(output, -(-2 * max(output - 1, 1) // max(side - 1, 1)))
        for side, output in ((height, rows), (width, columns))
    )
    launch(
        kernels.resize_backward_kernel,
        _grid_of(grad_query),
        *(grad, grad_query, *sizes, *most),
        read=grad,
        width=grad.shape[1],
        **_resize_constants(grad, sizes),
    )


def _grid_of(written: Tensor) -> Callable[[dict[str, Any]], tuple[int, int]]:
    images, depth, *size = written.shape
    pixels = math.prod(size)
    return lambda b: (
        images * -(-pixels // b["BLOCK_PIXELS"]),
        -(-depth // b["BLOCK_CHANNELS"]),
    )


def _resize_constants(resized: Tensor, sizes: Sequence[int]) -> dict[str, Any]:
    height, width, rows, columns = sizes
    batch, depth = resized.shape[:2]
    largest = batch * depth * max(height * width, rows * columns)
    return {
        "DEPTH": depth,
        "COMPUTE": triton_dtype(compute_dtype(resized)),
        # Positions are products of sizes.
        "INDEX": triton_dtype(index_dtype(max(largest, height * rows, width * columns))),
    }


class _Call:
    """The inputs as the kernels read them, and what is launched for each direction."""

    def __init__(
        self, query: Tensor, parameters: Sequence[Tensor], num_groups: int, offset_range: float
    ) -> None:
        self.query, channels_last = dense(query)
        self.parameters = [p.contiguous() for p in parameters]
        outputs, channels, kernel_size, _ = parameters[3].shape
        self.images, self.sizes = len(query), query.shape[2:]
        self.pixels = math.prod(self.sizes)
        self.groups, self.dtype = num_groups, compute_dtype(query)
        self.constants = {
            "GROUPS": num_groups,
            "CHANNELS": channels,
            "OUTPUTS": outputs,
            "KERNEL": kernel_size,
            "CHANNELS_LAST": channels_last,
            "OFFSET_RANGE": offset_range,
            "EPSILON": EPSILON,
            "PARAMETERS": sum(p.numel() for p in parameters),
            "BLOCK_CHANNELS": side(channels),
            "BLOCK_OUTPUTS": side(outputs),
            "COMPUTE": triton_dtype(self.dtype),
            "INDEX": triton_dtype(
                index_dtype(self.images * self.pixels * num_groups * side(max(channels, outputs)))
            ),
            **product_types(query.dtype),
        }

    def forward(self, offsets: Tensor) -> None:
        """Write the offsets."""
        depthwise, norm_weight, norm_bias, conv_weight, conv_bias = self.parameters
        hidden = self._empty_map()
        self._launch(
            kernels.hidden_kernel,
            self._tiles,
            *(self.query, depthwise, norm_weight, norm_bias, hidden, *self.sizes),
        )
        self._launch(
            kernels.offsets_kernel,
            self._tiles,
            *(hidden, conv_weight, conv_bias, offsets, *self.sizes),
        )

    def backward(
        self,
        grads: Sequence[Tensor],
        offsets: Tensor,
        grad_query: Tensor,
        grads_of_parameters: Sequence[Tensor],
    ) -> None:
        """Write the gradients of the query, of the size that the network sees, and parameters."""
        depthwise, norm_weight, norm_bias, conv_weight, _ = self.parameters
        grad_offsets, *grad_resized = grads
        other, channels_last = dense(grad_resized[0]) if grad_resized else (None, False)
        outputs = self.constants["BLOCK_OUTPUTS"]
        grad_predicted = self.query.new_empty(self.images, self.pixels, self.groups * outputs)
        self._launch(
            kernels.tanh_backward_kernel,
            self._tiles,
            *(grad_offsets.contiguous(), offsets.contiguous(), grad_predicted, *self.sizes),
        )
        # Programs sum over tiles of their own, each to a row; kernels write some of its columns.
        programs = parts(self.images * self.groups, self.pixels, self.query.device)
        widths = [p.numel() for p in self.parameters]
        sums = self.query.new_empty(programs, sum(widths), dtype=self.dtype)
        of_depthwise, of_weight, of_bias, of_conv_weight, of_conv_bias = sums.split(widths, 1)
        hidden, grad_features = self._empty_map(), self._empty_map()
        self._launch(
            kernels.hidden_backward_kernel,
            lambda blocks: (programs,),
            *(grad_predicted, self.query, depthwise, norm_weight, norm_bias, conv_weight),
            *(hidden, grad_features, of_weight, of_bias, of_conv_bias, self.images, *self.sizes),
        )
        columns = conv_weight[0, 0].numel() * self.constants["BLOCK_CHANNELS"]
        self._launch(
            kernels.conv_weight_backward_kernel,
            lambda blocks: (programs, -(-columns // blocks["BLOCK_COLUMNS"])),
            *(grad_predicted, hidden, of_conv_weight, self.images, *self.sizes),
        )
        del grad_predicted, hidden
        self._launch(
            kernels.query_backward_kernel,
            lambda blocks: (programs,),
            *(grad_features, other, self.query, depthwise, grad_query, of_depthwise),
            *(self.images, *self.sizes),
            GRAD_CHANNELS_LAST=channels_last,
        )
        sum_parts(sums, grads_of_parameters)

    def _launch(self, kernel: Any, programs: Any, *arguments: Any, **constants: Any) -> None:
        constants |= self.constants
        launch(
            *(kernel, programs, *arguments),
            read=self.query,
            width=self.constants["CHANNELS"],
            **constants,
        )

    def _tiles(self, blocks: dict[str, Any]) -> tuple[int]:
        """How many tiles all images and groups have."""
        return (self.images * self.groups * -(-self.pixels // blocks["BLOCK_PIXELS"]),)

    def _empty_map(self) -> Tensor:
        """An uninitialised map like the query, channels-last."""
        return torch.empty_like(self.query, memory_format=torch.channels_last)
