"""Local deformable attention on GPUs: launches the kernels of :mod:`.attention_kernels`.

Nothing is kept for the backward pass but the inputs, and no samples are stored. The forward pass is
one launch. The backward pass makes a list of the samples in the order of the cells of the input
grid, computes the gradients of queries and offsets in one launch over the pixels, and gathers those
of value and key from the list. Nothing is added up by atomic operations: all gradients come out the
same each time.

Why it is so, by counting for 2 maps of 256 channels, 100x168 to 200x336, in float32 on an H200
(these kernels are **not timed**). Each of 134,400 pixels reads 36 corners of 256 + 64 channels:
6.2 GB, which L1 delivers in 0.22 ms at best. Least traffic with the device's memory is 0.23 GB
forward and 0.33 GB backward, under 0.1 ms each.

- Forward, and the gradients that belong to pixels: instructions and L1 decide. A group of 8 lanes
  shares a pixel, so that coordinates cost a quarter of what they cost a whole warp; forward issues
  88 instructions of a warp for a pixel, point and slice (83 in half precision), backward 190 (143):
  0.23 and 0.50 ms (0.22 and 0.37) at full rate.
- Gradients of value and key: a sample is read in two rows of positions, as strips of 8 walk from
  cell to cell, 2.25 times in all where four corners are 4: 3.5 GB through L2, 0.6 ms, half of that
  in half precision. The sort adds 0.1 ms.
- The alternative, products of dense matrices (weights of all positions near a tile of pixels, made
  of tents in registers), takes 23 G multiply-adds at offsets of 11 pixels, 0.7 ms at the peak of
  float32 and more than 1.2 ms in practice, beside 0.45 ms for making the weights; it is on a par in
  half precision alone, it slows down as offsets grow, and a NaN spreads over its blocks. Atomic
  additions take 1.7 ms.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ..layout import Layout, compute_dtype, like, memory_format_of
from . import attention_kernels as kernels
from .launch import index_dtype, launch, triton_dtype

BIAS_SPAN = 1024  # pixels of a program of backward_bias_kernel
MIN_DOT = 16  # the smallest block that tl.dot takes
MAX_DOT = 64


def local_deformable_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    position_bias: Tensor | None,
    num_heads: int,
) -> list[Tensor]:
    """See :func:`lda_aqu.ops.local_deformable_attention`."""
    shape = (*value.shape[:2], *query.shape[2:])
    output = Layout(shape, value.dtype, memory_format_of(value)).empty(value.device)
    if output.numel():
        _Call(query, key, value, offsets, position_bias, num_heads).forward(output)
    return [output]


def local_deformable_attention_backward(
    grads: Sequence[Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    position_bias: Tensor | None,
    num_heads: int,
) -> list[Tensor]:
    """Gradients of the tensors, in their order."""
    layouts = [
        like(query, torch.channels_last),
        like(key, torch.channels_last),
        like(value, memory_format_of(value)),
        like(offsets),
        *([] if position_bias is None else [like(position_bias)]),
    ]
    results = [layout.empty(value.device) for layout in layouts]
    if grads[0].numel():
        call = _Call(query, key, value, offsets, position_bias, num_heads)
        call.backward(grads[0], *results)
    else:
        for result in results:
            result.zero_()
    return results


def _is_channels_last(x: Tensor) -> bool:
    """As the kernels read and write it: channels-last, or else contiguous."""
    return memory_format_of(x) == torch.channels_last


def _sum(shares: Tensor, dim: int, result: Tensor) -> None:
    """Write the sum over a dimension, added up in the dtype of the shares."""
    if result.dtype == shares.dtype:
        torch.sum(shares, dim, out=result)
    else:
        result.copy_(shares.sum(dim))


class _Call:
    """The inputs as the kernels read them, and what is launched for each direction.

    Shape shorthand:
        N: batch; d: channels of query and key; C: channels of the value; h: heads; g: groups
        H, W: input size; Y, X: output size; K: points, k²; s: slices, lcm(h, g)
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        offsets: Tensor,
        position_bias: Tensor | None,
        num_heads: int,
    ) -> None:
        self.query, self.key, self.value = (
            x.contiguous(memory_format=torch.channels_last) for x in (query, key, value)
        )
        self.offsets = offsets.contiguous()
        self.bias = None if position_bias is None else position_bias.contiguous()
        self.dtype = compute_dtype(query, key, value, offsets, position_bias)

        self.batch, depth, *output_size = query.shape
        channels, *input_size = value.shape[1:]
        self.heads, (self.groups, self.points) = num_heads, offsets.shape[1:3]
        self.slices = math.lcm(self.heads, self.groups)
        self.input_size, self.output_size = input_size, output_size
        self.output_pixels = math.prod(output_size)
        # Of cells, which touch the map, and of samples without one.
        self.cells = self.batch * self.groups * ((input_size[0] + 1) * (input_size[1] + 1) + 1)

        largest = max(
            self.batch * max(depth, channels) * math.prod(input_size),
            self.batch * max(depth, channels, 2 * self.slices * self.points) * self.output_pixels,
            self.cells,
        )
        self.index = index_dtype(largest)
        self.key_width, self.value_width = depth // self.slices, channels // self.slices
        self.pixel_constants = {
            "KEY_WIDTH": self.key_width,
            "VALUE_WIDTH": self.value_width,
            "KEY_PADDED": triton.next_power_of_2(self.key_width),
            "VALUE_PADDED": triton.next_power_of_2(self.value_width),
            "POINT_BLOCK": triton.next_power_of_2(self.points),
            "SCALE": (depth // self.heads) ** -0.5,
        }

    def forward(self, output: Tensor) -> None:
        """Write ``output``, (N, C, Y, X)."""
        attention = self._empty(self.batch, self.heads, self.output_pixels, self.points)
        self._launch(
            kernels.forward_kernel,
            self._pixel_programs,
            *(self.query, self.key, self.value, self.offsets, self.bias, attention, output),
            read=self.value,
            width=self.value_width,
            OUTPUT_CHANNELS_LAST=_is_channels_last(output),
            **self.pixel_constants,
        )

    def backward(
        self,
        grad_output: Tensor,
        grad_query: Tensor,
        grad_key: Tensor,
        grad_value: Tensor,
        grad_offsets: Tensor,
        grad_bias: Tensor | None = None,
    ) -> None:
        """Write all gradients but the first."""
        samples = self._sort_samples()  # first: sorting needs memory for a while
        upstream = grad_output
        if not _is_channels_last(grad_output):
            grad_output = grad_output.contiguous()
            upstream = torch.empty_like(grad_output, memory_format=torch.channels_last)
        attention = self._empty(self.batch, self.heads, self.output_pixels, self.points)
        grad_logits = torch.empty_like(attention)

        # One share a group, where heads do not cut groups: the gradient itself.
        is_shared = self.slices > self.groups
        shares = grad_offsets
        if is_shared or grad_offsets.dtype != self.dtype:
            shares = self._empty(self.batch, self.slices, *grad_offsets.shape[2:])
        self._launch(
            kernels.backward_pixels_kernel,
            self._pixel_programs,
            *(grad_output, self.query, self.key, self.value, self.offsets, self.bias),
            *(attention, grad_logits, upstream, shares),
            *(grad_query, shares if is_shared else grad_offsets),
            read=self.value,
            width=self.value_width,
            OUTPUT_CHANNELS_LAST=upstream is grad_output,
            **self.pixel_constants,
        )
        if is_shared:
            per_group = (self.batch, self.groups, -1, *grad_offsets.shape[2:])
            _sum(shares.view(per_group), 2, grad_offsets)
        if grad_bias is not None:
            _sum(self._bias_shares(grad_logits), 0, grad_bias)

        for coefficients, read, written, width in (
            (attention, upstream, grad_value, self.value_width),
            (grad_logits, self.query, grad_key, self.key_width),
        ):
            self._gather(coefficients, read, *samples, written, width)

    def _sort_samples(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where each sample is read, the samples in the order of their cells, each cell's first."""
        shape = (self.batch, self.groups, self.output_pixels, self.points)
        positions = self._empty(*shape, 2)
        cells = positions.new_empty(shape, dtype=self.index)
        self._launch(
            kernels.samples_kernel,
            lambda values: (
                self.batch * self.groups * triton.cdiv(self.output_pixels, values["PIXELS"]),
            ),
            *(self.offsets, positions, cells),
            read=self.offsets,
            width=self.points,
            POINT_BLOCK=triton.next_power_of_2(self.points),
        )
        cells, samples = cells.flatten().sort(stable=True)
        numbers = torch.arange(self.cells, dtype=cells.dtype, device=cells.device)
        return positions, samples, torch.searchsorted(cells, numbers)

    def _bias_shares(self, grad_logits: Tensor) -> Tensor:
        """What spans of pixels add to the gradient of the bias, (spans, h, K, d / h)."""
        spans = self.batch * triton.cdiv(self.output_pixels, BIAS_SPAN)
        head_depth = self.query.shape[1] // self.heads
        shares = self._empty(spans, self.heads, self.points, head_depth)
        block = min(max(triton.next_power_of_2(head_depth), MIN_DOT), MAX_DOT)
        self._launch(
            kernels.backward_bias_kernel,
            (spans * self.heads * triton.cdiv(head_depth, block),),
            *(grad_logits, self.query, shares),
            read=self.query,
            width=head_depth,
            HEAD_DEPTH=head_depth,
            POINT_BLOCK=max(triton.next_power_of_2(self.points), MIN_DOT),
            DEPTH_BLOCK=block,
            SPAN=BIAS_SPAN,
        )
        return shares

    def _gather(
        self,
        coefficients: Tensor,
        upstream: Tensor,
        positions: Tensor,
        samples: Tensor,
        starts: Tensor,
        grad_source: Tensor,
        width: int,
    ) -> None:
        """Write the gradient of key or value; ``width`` is the channels of one of its slices."""
        height, breadth = self.input_size
        padded = triton.next_power_of_2(width)

        def programs(values: dict[str, Any]) -> tuple[int]:
            block = min(padded, values["PASS_BYTES"] // upstream.itemsize)
            strips = triton.cdiv(breadth, values["STRIP"]) * height
            return (self.batch * self.slices * triton.cdiv(width, block) * strips,)

        self._launch(
            kernels.backward_source_kernel,
            programs,
            *(coefficients, upstream, positions, samples, starts, grad_source),
            read=upstream,
            width=width,
            WIDTH=width,
            PADDED=padded,
            SOURCE_CHANNELS_LAST=_is_channels_last(grad_source),
        )

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.value.device)

    def _pixel_programs(self, values: dict[str, Any]) -> tuple[int]:
        """How many programs cover all heads and pixels with tiles."""
        height, width = self.output_size
        across = triton.cdiv(width, values["TILE_COLUMNS"])
        return (self.batch * self.heads * across * triton.cdiv(height, values["TILE_ROWS"]),)

    def _launch(
        self, kernel: Any, programs: Any, *arguments: Tensor | None, **options: Any
    ) -> None:
        launch(
            kernel,
            programs,
            *arguments,
            *(*self.input_size, *self.output_size),
            HEADS=self.heads,
            GROUPS=self.groups,
            SLICES=self.slices,
            POINTS=self.points,
            COMPUTE=triton_dtype(self.dtype),
            INDEX=triton_dtype(self.index),
            **options,
        )
