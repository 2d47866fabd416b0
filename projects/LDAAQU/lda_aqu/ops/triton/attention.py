"""Local deformable attention on GPUs: launches the kernels of :mod:`.attention_kernels`.

The kernels were checked against :mod:`lda_aqu.ops.plain` under Triton's interpreter, on a CPU, and
compiled for NVIDIA's sm_80 and sm_90 and AMD's gfx942. On an H200 they were run, and measured: see
docs/benchmarks.md.

Neither direction stores samples. Nothing is added up by atomic operations either: the gradients of
key and value are gathered, from the samples sorted by where they were read, and come out the same
each time. What may differ from one process to another is the tile size, which is autotuned by
measured times and decides the order of sums; ``torch.use_deterministic_algorithms(True)`` fixes it.

What is read by channels is made channels-last first, unless it is. The output and the gradient of
the value have the memory format of the value, those of query and key are channels-last.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..layout import memory_format_of
from . import attention_kernels as kernels
from . import is_interpreted

MAX_CHANNEL_BLOCK = 128  # channels of a tile; wider slices take several
CELL_BLOCK = 1024  # samples of one program of cells_kernel
MAX_INT32_ELEMENTS = 2**31  # tensors with fewer are addressed in 32 bits


def local_deformable_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    position_bias: Tensor | None,
    num_heads: int,
) -> list[Tensor]:
    """See :func:`lda_aqu.ops.local_deformable_attention`."""
    output = _empty_as(value, (*value.shape[:2], *query.shape[2:]))
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
    (grad_output,) = grads
    channels_last = torch.channels_last
    results = [
        torch.empty_like(query, memory_format=channels_last),
        torch.empty_like(key, memory_format=channels_last),
        _empty_as(value, value.shape),
        torch.empty_like(offsets, memory_format=torch.contiguous_format),
    ]
    if position_bias is not None:
        results.append(position_bias.new_empty(position_bias.shape))
    if grad_output.numel():
        call = _Call(query, key, value, offsets, position_bias, num_heads)
        call.backward(grad_output.contiguous(memory_format=channels_last), *results)
    else:
        for result in results:
            result.zero_()
    return results


def _empty_as(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An uninitialised tensor of this shape, in the dtype and memory format of ``like``."""
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=memory_format_of(like)
    )


def _channel_and_pixel_stride(x: Tensor) -> tuple[int, int]:
    return x.stride(1), x.stride(3)


def _power_of_2(n: int) -> int:
    """The smallest power of 2 that is at least n."""
    return 1 << (n - 1).bit_length()


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
        tensors = [x for x in (query, key, value, offsets, position_bias) if x is not None]
        self.dtype = reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)

        self.batch, depth, *output_size = query.shape
        channels, *input_size = value.shape[1:]
        self.heads, (self.groups, self.points) = num_heads, offsets.shape[1:3]
        self.slices = math.lcm(self.heads, self.groups)
        self.input_positions, self.output_pixels = math.prod(input_size), math.prod(output_size)
        self.sizes = (*input_size, *output_size)

        largest = self.batch * max(
            max(depth, channels) * self.input_positions,
            max(depth, channels, 2 * self.slices * self.points) * self.output_pixels,
        )
        tl = kernels.tl
        self.constants = {
            "POINTS": self.points,
            "COMPUTE": tl.float64 if self.dtype == torch.float64 else tl.float32,
            "INDEX": tl.int32 if largest < MAX_INT32_ELEMENTS else tl.int64,
        }
        self.cuts = {"HEADS": self.heads, "GROUPS": self.groups, "SLICES": self.slices}
        self.key_width, self.value_width = depth // self.slices, channels // self.slices
        self.widths = {
            "KEY_WIDTH": self.key_width,
            "VALUE_WIDTH": self.value_width,
            "KEY_BLOCK": min(_power_of_2(self.key_width), MAX_CHANNEL_BLOCK),
            "VALUE_BLOCK": min(_power_of_2(self.value_width), MAX_CHANNEL_BLOCK),
            "POINT_BLOCK": _power_of_2(self.points),
            "SCALE": (depth // self.heads) ** -0.5,
        }

    def forward(self, output: Tensor) -> None:
        """Write ``output``, (N, C, Y, X)."""
        self._launch(
            kernels.forward_kernel,
            self._pixel_programs,
            *(self.query, self.key, self.value, self.offsets, self.bias),
            *(output, *_channel_and_pixel_stride(output)),
            **self.cuts,
            **self.widths,
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
        """Write all gradients but the first, which is channels-last."""
        maps = (self.batch, self.heads, self.points, self.output_pixels)
        attention, grad_logits = self._empty(*maps), self._empty(*maps)
        shares = self._empty(self.batch, self.slices, self.points, 2, self.output_pixels)
        self._launch(
            kernels.backward_pixels_kernel,
            self._pixel_programs,
            *(grad_output, self.query, self.key, self.value, self.offsets, self.bias),
            *(attention, grad_logits, shares, grad_query),
            SLOT_BLOCK=_power_of_2(self.slices // self.heads * self.points),
            **self.cuts,
            **self.widths,
        )
        per_group = (self.batch, self.groups, self.slices // self.groups, *grad_offsets.shape[2:])
        grad_offsets.copy_(shares.view(per_group).sum(2))
        if self.bias is not None:
            query = self.query.to(self.dtype).unflatten(1, (self.heads, -1)).flatten(3)
            with torch.autocast(query.device.type, enabled=False):
                grad_bias.copy_(torch.einsum("nhkp,nhdp->hkd", grad_logits, query))
        samples = self._sort_samples()
        self._gather(attention, grad_output, *samples, grad_value, self.value_width)
        self._gather(grad_logits, self.query, *samples, grad_key, self.key_width)

    def _sort_samples(self) -> tuple[Tensor, Tensor]:
        """For each of (N * g) groups its samples by the cells they lie in, and where each begins.

        A sample is its index in (K, Y * X), a cell a square of the input grid, as numbered by
        ``cells_kernel``.
        """
        height, width = self.sizes[:2]
        shape = (self.batch * self.groups, self.points * self.output_pixels)
        cells = torch.empty(shape, dtype=torch.int32, device=self.value.device)
        programs = -(-cells.numel() // CELL_BLOCK)
        self._launch(
            kernels.cells_kernel,
            (programs,),
            *(self.offsets, cells, cells.numel()),
            BLOCK_SAMPLES=CELL_BLOCK,
        )
        cells, samples = cells.sort(dim=1, stable=True)
        numbers = torch.arange((height + 1) * (width + 1) + 1, device=cells.device).int()
        starts = torch.searchsorted(cells, numbers.expand(shape[0], -1).contiguous())
        return samples, starts

    def _gather(
        self,
        coefficients: Tensor,
        upstream: Tensor,
        samples: Tensor,
        starts: Tensor,
        grad_source: Tensor,
        width: int,
    ) -> None:
        """Write the gradient of key or value; ``width`` is the channels of one of its slices."""
        block = min(_power_of_2(width), MAX_CHANNEL_BLOCK)
        programs = self.batch * self.slices * -(-width // block) * self.input_positions
        self._launch(
            kernels.backward_source_kernel,
            (programs,),
            *(coefficients, upstream, self.offsets, samples, starts),
            *(grad_source, *_channel_and_pixel_stride(grad_source)),
            WIDTH=width,
            BLOCK=block,
            **self.cuts,
        )

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.value.device)

    def _pixel_programs(self, tile: dict[str, Any]) -> tuple[int]:
        """How many programs cover all pixels and heads with blocks of an autotuned size."""
        return (self.batch * self.heads * -(-self.output_pixels // tile["BLOCK_PIXELS"]),)

    def _launch(
        self,
        kernel: Any,
        programs: tuple[int] | Callable[[dict[str, Any]], tuple[int]],
        *arguments: Tensor | int | None,
        **constants: Any,
    ) -> None:
        """Run a kernel on the device of the tensors, and with a fixed tile where asked for."""
        constants |= self.constants
        is_autotuned = hasattr(kernel, "configs")
        if is_autotuned and (is_interpreted() or torch.are_deterministic_algorithms_enabled()):
            constants |= kernel.configs[0].all_kwargs()
            kernel = kernel.fn
        device = self.value.device
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            kernel[programs](*arguments, *self.sizes, **constants)
