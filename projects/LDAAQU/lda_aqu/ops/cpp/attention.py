"""Local deformable attention by the compiled CPU kernels."""

import ctypes
import math
from functools import reduce

import torch
from torch import Tensor

from ..memory_format import memory_format_of
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


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    position_bias: Tensor | None,
    num_heads: int,
) -> Tensor:
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
    return output.to(value.dtype)


def backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    position_bias: Tensor | None,
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the five tensors, in their order; the last is empty without a bias."""
    call = _Call(query, key, value, offsets, position_bias, num_heads)
    dtype = call.dtype
    bias = query.new_empty(0) if position_bias is None else position_bias
    inputs = (query, key, value, offsets, bias)
    grads = (
        torch.empty_like(query, dtype=dtype, memory_format=torch.channels_last),
        torch.empty_like(key, dtype=dtype, memory_format=torch.channels_last),
        torch.empty_like(value, dtype=dtype),
        torch.empty_like(offsets, dtype=dtype),
        torch.empty_like(bias, dtype=dtype, memory_format=torch.contiguous_format),
    )
    if grad_output.numel():
        call.set_tensor("grad_output", grad_output.to(call.output_dtype), "output_strides")
        strides = (None, None, "grad_value_strides", "grad_offset_strides", None)
        names = ("grad_query", "grad_key", "grad_value", "grad_offsets", "grad_bias")
        for name, grad, stride in zip(names, grads, strides, strict=True):
            if grad.numel():  # there is none of the bias where there is no bias
                call.set_tensor(name, in_huge_pages(grad), stride)
        call.run("backward")
    else:
        for grad in grads:
            grad.zero_()
    return tuple(grad.to(tensor.dtype) for grad, tensor in zip(grads, inputs, strict=True))


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
        self.dtype = reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
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
