"""The compiled library, called through ctypes.

It is built when the package is installed (see setup.py). It needs no headers of PyTorch and no
certain version of it: it gets addresses, sizes and strides, and a workspace to compute in.
"""

import ctypes
import importlib.machinery
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # as in attention_problem.h


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


def fields(ctype: type, names: str) -> Iterable[tuple[str, type]]:
    """The fields of one type, named with spaces between them, of a struct."""
    return ((name, ctype) for name in names.split())


def run(name: str, problem: ctypes.Structure) -> None:
    """Call the function ``lda_aqu_<name>`` of the library."""
    function = getattr(_library(), f"lda_aqu_{name}")
    function.restype = None
    function(ctypes.byref(problem))


class Call:
    """What the kernels are told, and the tensors whose addresses they are told."""

    def __init__(self, problem: ctypes.Structure) -> None:
        self.problem = problem
        self._tensors: list[Tensor] = []

    def set_tensor(self, name: str, tensor: Tensor, strides: str | None = None) -> None:
        """Enter a tensor's address and, under the name ``strides``, its strides."""
        self._tensors.append(tensor)
        setattr(self.problem, name, tensor.data_ptr())
        if strides is not None:
            getattr(self.problem, strides)[:] = tensor.stride()

    def run(self, name: str, workspace_size: str, is_backward: bool) -> None:
        """Call ``lda_aqu_<name>`` with the memory that ``lda_aqu_<workspace_size>`` asks for."""
        function = getattr(_library(), f"lda_aqu_{workspace_size}")
        function.restype = ctypes.c_int64
        size = function(ctypes.byref(self.problem), ctypes.c_int(is_backward))
        self.set_tensor("workspace", in_huge_pages(torch.empty(size, dtype=torch.uint8)))
        run(name, self.problem)


def in_huge_pages(tensor: Tensor) -> Tensor:
    """Ask for huge pages for a new tensor: mapping small ones costs more than filling them."""
    _library().lda_aqu_advise_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


@cache
def _library() -> ctypes.CDLL:
    """The compiled library.

    Raises:
        OSError: it was not built or cannot be loaded.
    """
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).parent.with_name("_cpp" + suffix)
        if path.exists():
            library = ctypes.CDLL(str(path))
            break
    else:
        raise OSError(
            "the C++ kernels were not built: the package was installed without a C++ compiler "
            "that has OpenMP, as GCC from version 12 on (`pip install -v` shows its messages)"
        )
    library.lda_aqu_instruction_set.restype = ctypes.c_char_p
    library.lda_aqu_use_instruction_set.argtypes = [ctypes.c_char_p]
    library.lda_aqu_advise_huge_pages.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    library.lda_aqu_advise_huge_pages.restype = None
    return library
