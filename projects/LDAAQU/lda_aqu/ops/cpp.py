"""Local deformable attention by the compiled CPU kernels of ``csrc/``, called through ctypes.

The library is built when the package is installed (see setup.py). It needs no headers of PyTorch
and no certain version of it: it gets addresses, sizes and strides, and a workspace to compute in.
"""

import ctypes
import importlib.machinery
import math
from collections.abc import Callable
from functools import cache, reduce
from pathlib import Path

import torch
from torch import Tensor

from .memory_format import memory_format_of

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # as in problem.h


class Problem(ctypes.Structure):
    """The struct of problem.h."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in (
                *("batch", "depth", "channels", "heads", "groups", "kernel_size"),
                *("in_height", "in_width", "out_height", "out_width", "threads", "output_dtype"),
            )
        ),
        ("offset_strides", ctypes.c_int64 * 6),
        ("grad_offset_strides", ctypes.c_int64 * 6),
        ("value_strides", ctypes.c_int64 * 4),
        ("output_strides", ctypes.c_int64 * 4),
        ("grad_value_strides", ctypes.c_int64 * 4),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("query", "key", "value", "offsets", "bias", "output", "grad_output"),
                *("grad_query", "grad_key", "grad_value", "grad_offsets", "grad_bias", "workspace"),
            )
        ),
    )


def unavailable(device: torch.device) -> str:
    """Why the kernels cannot run on ``device``, or an empty string."""
    if device.type != "cpu":
        return "it is for the CPU"
    try:
        _library()
    except OSError as error:
        return str(error)
    return ""


def instruction_set() -> str:
    """The instruction set whose kernels run: "avx512", "avx2" or "generic"."""
    return _library().lda_aqu_instruction_set().decode()


def use_instruction_set(name: str) -> None:
    """Run the kernels of another instruction set from now on.

    Raises:
        ValueError: there are none of that name, or this CPU cannot run them.
    """
    if _library().lda_aqu_use_instruction_set(name.encode()):
        raise ValueError(f"no kernels for the instruction set {name!r} run on this CPU")


@cache
def _library() -> ctypes.CDLL:
    """The compiled library.

    Raises:
        OSError: it was not built or cannot be loaded.
    """
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_cpp" + suffix)
        if path.exists():
            library = ctypes.CDLL(str(path))
            break
    else:
        raise OSError(
            "the C++ kernels were not built: the package was installed without a C++ compiler "
            "that has OpenMP (`pip install -v` shows its messages)"
        )
    problem = ctypes.POINTER(Problem)
    library.lda_aqu_instruction_set.restype = ctypes.c_char_p
    library.lda_aqu_use_instruction_set.argtypes = [ctypes.c_char_p]
    library.lda_aqu_workspace_size.argtypes = [problem, ctypes.c_int]
    library.lda_aqu_workspace_size.restype = ctypes.c_int64
    library.lda_aqu_advise_huge_pages.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    library.lda_aqu_advise_huge_pages.restype = None
    for function in (library.lda_aqu_forward, library.lda_aqu_backward):
        function.argtypes = [problem]
        function.restype = None
    return library


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
    output = _in_huge_pages(
        torch.empty(
            (*value.shape[:2], *query.shape[2:]),
            dtype=call.output_dtype,
            memory_format=memory_format_of(value),
        )
    )
    if output.numel():
        call.set_tensor("output", output, "output_strides")
        call.run(_library().lda_aqu_forward, is_backward=False)
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
            call.set_tensor(name, _in_huge_pages(grad), stride)
        call.run(_library().lda_aqu_backward, is_backward=True)
    else:
        for grad in grads:
            grad.zero_()
    return tuple(grad.to(tensor.dtype) for grad, tensor in zip(grads, inputs, strict=True))


def _in_huge_pages(tensor: Tensor) -> Tensor:
    """Ask for huge pages for a new tensor: mapping small ones costs more than filling them."""
    _library().lda_aqu_advise_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


class _Call:
    """The inputs as the kernels read them, and the Problem that describes them."""

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
        if key.shape[2] * key.shape[3] >= 2**31:
            raise RuntimeError(f"maps of 2^31 pixels and more do not fit: {tuple(key.shape)}")
        self.problem = Problem(
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
            output_dtype=DTYPES.index(self.output_dtype),
        )
        self._tensors: list[Tensor] = []  # whose addresses the problem has
        for name, tensor in (("query", query), ("key", key)):
            self.set_tensor(
                name, tensor.to(self.dtype).contiguous(memory_format=torch.channels_last)
            )
        self.set_tensor("value", value.to(self.dtype), "value_strides")
        self.set_tensor("offsets", offsets.to(self.dtype), "offset_strides")
        if position_bias is not None:
            self.set_tensor("bias", position_bias.to(self.dtype).contiguous())

    def set_tensor(self, name: str, tensor: Tensor, strides: str | None = None) -> None:
        """Enter a tensor's address and, under the name ``strides``, its strides."""
        self._tensors.append(tensor)
        setattr(self.problem, name, tensor.data_ptr())
        if strides is not None:
            getattr(self.problem, strides)[:] = tensor.stride()

    def run(self, function: Callable[[Problem], None], is_backward: bool) -> None:
        """Call a function of the library with a workspace."""
        problem = ctypes.byref(self.problem)
        size = _library().lda_aqu_workspace_size(problem, is_backward)
        self.set_tensor("workspace", _in_huge_pages(torch.empty(size, dtype=torch.uint8)))
        function(problem)
