"""The offset network by the compiled CPU kernels."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ..layout import Layout, memory_format_of
from ..plain.offset_network import EPSILON
from .library import DTYPES, Call, Problem, fields, in_huge_pages


class OffsetNetworkProblem(Problem):
    """The struct of csrc/offset_network/problem.h."""

    operator = "offset_network"
    _fields_ = (
        *fields(ctypes.c_int64, "batch depth groups height width source_height source_width"),
        *fields(ctypes.c_int64, "kernel_size outputs threads dtype"),
        *fields(ctypes.c_int64 * 4, "query_strides grad_query_strides"),
        *fields(ctypes.c_double, "offset_range epsilon"),
        *fields(ctypes.c_void_p, "source query depthwise norm_weight norm_bias conv_weight"),
        *fields(ctypes.c_void_p, "conv_bias offsets grad_offsets grad_resized grad_query"),
        *fields(ctypes.c_void_p, "grad_depthwise grad_norm_weight grad_norm_bias grad_conv_weight"),
        *fields(ctypes.c_void_p, "grad_conv_bias workspace"),
    )


PARAMETERS = ("depthwise", "norm_weight", "norm_bias", "conv_weight", "conv_bias")


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
    """See :func:`.plain.offset_network.predict_offsets`. Computes in float32 at least."""
    parameters = (depthwise, norm_weight, norm_bias, conv_weight, conv_bias)
    source = _readable(query)
    resized = [in_huge_pages(_empty_of_size(source, output_size))] if output_size else []
    call = _Call(resized[0] if output_size else source, parameters, num_groups, offset_range)
    if output_size:
        call.set_source(source)
    shape = (
        len(query),
        num_groups,
        conv_weight.shape[0] // 2,
        2,
        *(output_size or query.shape[2:]),
    )
    offsets = in_huge_pages(torch.empty(shape, dtype=call.dtype))
    if offsets.numel():
        call.set_tensor("offsets", offsets)
        call.run("forward")
    return [offsets, *(r.to(query.dtype) for r in resized)]


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
    grad_offsets, *grad_resized = grads
    readable = _readable(resized)
    call = _Call(readable, parameters, num_groups, offset_range)
    if input_size:
        grad_query = _empty_of_size(readable, input_size)
        call.set_grad_resized(grad_resized[0].to(readable.dtype), input_size)
    else:
        grad_query = torch.empty_like(readable, memory_format=memory_format_of(resized))
    grads_of_parameters = [torch.zeros(p.shape, dtype=call.dtype) for p in parameters]
    if offsets.numel():
        call.set_tensor("offsets", offsets.to(call.dtype).contiguous())
        call.set_tensor("grad_offsets", grad_offsets.to(call.dtype).contiguous())
        call.set_tensor("grad_query", in_huge_pages(grad_query), "grad_query_strides")
        for name, grad in zip(PARAMETERS, grads_of_parameters, strict=True):
            call.set_tensor(f"grad_{name}", grad)
        call.run("backward")
    else:
        grad_query.zero_()
    return [
        grad_query.to(resized.dtype),
        *(g.to(p.dtype) for g, p in zip(grads_of_parameters, parameters, strict=True)),
    ]


def _empty_of_size(x: Tensor, size: Sequence[int]) -> Tensor:
    """Uninitialised, as (N, C, H, W) ``x`` but of another ``size`` (Y, X), and channels-last."""
    return Layout((*x.shape[:2], *size), x.dtype, torch.channels_last).empty(x.device)


def _readable(query: Tensor) -> Tensor:
    """In a dtype that the kernels know."""
    return query if query.dtype in DTYPES else query.float()


class _Call(Call):
    """The inputs as the kernels read them, and the OffsetNetworkProblem that describes them."""

    def __init__(
        self, query: Tensor, parameters: tuple[Tensor, ...], num_groups: int, offset_range: float
    ) -> None:
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        batch, depth, height, width = query.shape
        conv_weight = parameters[3]
        problem = OffsetNetworkProblem(
            batch=batch,
            depth=depth,
            groups=num_groups,
            height=height,
            width=width,
            kernel_size=conv_weight.shape[-1],
            outputs=conv_weight.shape[0],
            threads=torch.get_num_threads(),
            dtype=DTYPES.index(query.dtype),
            offset_range=offset_range,
            epsilon=EPSILON,
        )
        super().__init__(problem)
        self.set_tensor("query", query, "query_strides")
        for name, parameter in zip(PARAMETERS, parameters, strict=True):
            self.set_tensor(name, parameter.to(self.dtype).contiguous())

    def set_source(self, source: Tensor) -> None:
        """What the query is to be resized from."""
        self.problem.source_height, self.problem.source_width = source.shape[2:]
        self.set_tensor("source", source.contiguous(memory_format=torch.channels_last))

    def set_grad_resized(self, grad: Tensor, size: Sequence[int]) -> None:
        """The gradient that the query, resized from ``size``, has from elsewhere."""
        self.problem.source_height, self.problem.source_width = size
        self.set_tensor("grad_resized", grad.contiguous(memory_format=torch.channels_last))
