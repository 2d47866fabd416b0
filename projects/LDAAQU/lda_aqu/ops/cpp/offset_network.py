"""The offset network by the compiled CPU kernels."""

import ctypes

import torch
from torch import Tensor

from ..plain.offset_network import EPSILON
from .library import DTYPES, Call, fields, in_huge_pages


class OffsetProblem(ctypes.Structure):
    """The struct of offset_problem.h."""

    _fields_ = (
        *fields(ctypes.c_int64, "batch depth groups height width kernel_size outputs"),
        *fields(ctypes.c_int64, "threads dtype"),
        *fields(ctypes.c_int64 * 4, "query_strides grad_query_strides"),
        *fields(ctypes.c_double, "offset_range epsilon"),
        *fields(ctypes.c_void_p, "query depthwise norm_weight norm_bias conv_weight conv_bias"),
        *fields(ctypes.c_void_p, "offsets grad_offsets grad_query grad_depthwise grad_norm_weight"),
        *fields(ctypes.c_void_p, "grad_norm_bias grad_conv_weight grad_conv_bias workspace"),
    )


PARAMETERS = ("depthwise", "norm_weight", "norm_bias", "conv_weight", "conv_bias")


def forward(
    query: Tensor,
    depthwise: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    num_groups: int,
    offset_range: float,
) -> Tensor:
    """See :func:`lda_aqu.ops.predict_offsets`. Computes in float32 at least."""
    parameters = (depthwise, norm_weight, norm_bias, conv_weight, conv_bias)
    call = _Call(query, parameters, num_groups, offset_range)
    (batch, _, *size), points = query.shape, conv_weight.shape[0] // 2
    offsets = in_huge_pages(torch.empty((batch, num_groups, points, 2, *size), dtype=call.dtype))
    if offsets.numel():
        call.set_tensor("offsets", offsets)
        call.run("predict_offsets", "offset_workspace_size", is_backward=False)
    return offsets


def backward(
    grad_offsets: Tensor,
    offsets: Tensor,
    query: Tensor,
    depthwise: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    num_groups: int,
    offset_range: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the query and the five parameters, in their order."""
    parameters = (depthwise, norm_weight, norm_bias, conv_weight, conv_bias)
    call = _Call(query, parameters, num_groups, offset_range)
    grad_query = in_huge_pages(torch.empty_like(call.query))
    grads = [torch.zeros(parameter.shape, dtype=call.dtype) for parameter in parameters]
    if offsets.numel():
        call.set_tensor("offsets", offsets.to(call.dtype).contiguous())
        call.set_tensor("grad_offsets", grad_offsets.to(call.dtype).contiguous())
        call.set_tensor("grad_query", grad_query, "grad_query_strides")
        for name, grad in zip(PARAMETERS, grads, strict=True):
            call.set_tensor(f"grad_{name}", grad)
        call.run("predict_offsets_backward", "offset_workspace_size", is_backward=True)
    return (
        grad_query.to(query.dtype),
        *(g.to(parameter.dtype) for g, parameter in zip(grads, parameters, strict=True)),
    )


class _Call(Call):
    """The inputs as the kernels read them, and the OffsetProblem that describes them."""

    def __init__(
        self, query: Tensor, parameters: tuple[Tensor, ...], num_groups: int, offset_range: float
    ) -> None:
        self.query = query if query.dtype in DTYPES else query.float()
        self.dtype = torch.promote_types(self.query.dtype, torch.float32)
        batch, depth, height, width = query.shape
        conv_weight = parameters[3]
        problem = OffsetProblem(
            batch=batch,
            depth=depth,
            groups=num_groups,
            height=height,
            width=width,
            kernel_size=conv_weight.shape[-1],
            outputs=conv_weight.shape[0],
            threads=torch.get_num_threads(),
            dtype=DTYPES.index(self.query.dtype),
            offset_range=offset_range,
            epsilon=EPSILON,
        )
        super().__init__(problem)
        self.set_tensor("query", self.query, "query_strides")
        for name, parameter in zip(PARAMETERS, parameters, strict=True):
            self.set_tensor(name, parameter.to(self.dtype).contiguous())
