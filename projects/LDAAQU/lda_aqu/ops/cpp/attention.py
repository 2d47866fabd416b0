"""Local deformable attention by the compiled CPU kernels."""

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..layout import compute_dtype, memory_format_of
from .library import DTYPES, Call, Problem, fields, in_huge_pages


class AttentionProblem(Problem):
    """The struct of csrc/attention/problem.h."""

    operator = "attention"
    _fields_ = (
        *fields(ctypes.c_int64, "batch depth channels heads groups kernel_size"),
        *fields(ctypes.c_int64, "in_height in_width out_height out_width threads dtype"),
        *fields(ctypes.c_int64 * 6, "offset_strides grad_offset_strides"),
        *fields(ctypes.c_int64 * 4, "key_strides value_strides output_strides grad_value_strides"),
        *fields(ctypes.c_void_p, "query key value offsets bias output grad_output"),
        *fields(ctypes.c_void_p, "grad_query grad_key grad_value grad_offsets grad_bias workspace"),
    )


def local_deformable_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    position_bias: Tensor | None,
    num_heads: int,
) -> list[Tensor]:
    """See :func:`lda_aqu.ops.local_deformable_attention`."""
    call = _Call(query, key, value, offsets, position_bias, num_heads)
    output = in_huge_pages(
        torch.empty(
            (*value.shape[:2], *query.shape[2:]),
            dtype=call.output_dtype,
            memory_format=memory_format_of(value),
        )
    )
    if output.numel():
        call.set_tensor("output", output, "output_strides")
        call.run("forward")
    return [output.to(value.dtype)]


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
    call = _Call(query, key, value, offsets, position_bias, num_heads)
    dtype = call.dtype
    layouts = {
        "query": (query, torch.channels_last, None),
        "key": (key, torch.channels_last, None),
        "value": (value, memory_format_of(value), "grad_value_strides"),
        "offsets": (offsets, torch.contiguous_format, "grad_offset_strides"),
    }
    if position_bias is not None:
        layouts["bias"] = (position_bias, torch.contiguous_format, None)
    results = {
        name: torch.empty_like(tensor, dtype=dtype, memory_format=memory_format)
        for name, (tensor, memory_format, _) in layouts.items()
    }
    if grad_output.numel():
        call.set_tensor("grad_output", grad_output.to(call.output_dtype), "output_strides")
        for name, grad in results.items():
            call.set_tensor(f"grad_{name}", in_huge_pages(grad), layouts[name][2])
        call.run("backward")
    else:
        for grad in results.values():
            grad.zero_()
    return [grad.to(layouts[name][0].dtype) for name, grad in results.items()]


class _Call(Call):
    """The inputs as the kernels read them, and the AttentionProblem that describes them."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        offsets: Tensor,
        position_bias: Tensor | None,
        num_heads: int,
    ) -> None:
        tensors = [t for t in (query, key, value, offsets, position_bias) if t is not None]
        self.dtype = compute_dtype(*tensors)
        self.output_dtype = (
            value.dtype if self.dtype == torch.float32 and value.dtype in DTYPES else self.dtype
        )
        batch, depth, out_height, out_width = query.shape
        _, groups, points = offsets.shape[:3]
        # Pixels have 32-bit numbers, those of the border that the kernels add to a map too.
        if (key.shape[2] + 3) * (key.shape[3] + 1) >= 2**31:
            raise RuntimeError(f"maps of 2^31 pixels and more do not fit: {tuple(key.shape)}")
        problem = AttentionProblem(
            batch=batch,
            depth=depth,
            channels=value.shape[1],
            heads=num_heads,
            groups=groups,
            kernel_size=math.isqrt(points),
            in_height=key.shape[2],
            in_width=key.shape[3],
            out_height=out_height,
            out_width=out_width,
            threads=torch.get_num_threads(),
            dtype=DTYPES.index(self.output_dtype),
        )
        super().__init__(problem)
        query = query.to(self.dtype).contiguous(memory_format=torch.channels_last)
        self.set_tensor("query", query)
        self.set_tensor("key", key.to(self.dtype), "key_strides")
        self.set_tensor("value", value.to(self.dtype), "value_strides")
        self.set_tensor("offsets", offsets.to(self.dtype), "offset_strides")
        if position_bias is not None:
            self.set_tensor("bias", position_bias.to(self.dtype).contiguous())
