"""The compiled library, called through ctypes.

It is built when the package is installed (see setup.py). It needs no headers of PyTorch and no
certain version of it: it gets addresses, sizes and strides, and a workspace to compute in.
"""

import ctypes
import hashlib
import struct
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""What the kernels read and write, in the order of Dtype in csrc/common/dtypes.h."""

LIBRARY = Path(__file__).parent.with_name("_cpp.so")
SOURCES = Path(__file__).parent.with_name("csrc")


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


class Problem(ctypes.Structure):
    """Base of the structs that describe a call to the kernels of an operator."""

    operator: ClassVar[str]
    """Its folder in csrc/, whose problem.h the struct mirrors."""


class Call:
    """A call to the kernels: its Problem, and the tensors whose addresses that holds."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._tensors: dict[str, Tensor] = {}

    def set_tensor(self, name: str, tensor: Tensor, strides: str | None = None) -> None:
        """Enter a tensor's address and, under the name ``strides``, its strides."""
        self._tensors[name] = tensor
        setattr(self.problem, name, tensor.data_ptr())
        if strides is not None:
            getattr(self.problem, strides)[:] = tensor.stride()

    def run(self, function: str, has_workspace: bool = True) -> None:
        """Call ``lda_aqu_<operator>_<function>``, with the workspace that it asks for.

        Raises:
            RuntimeError: a tensor has no elements; the kernels do not expect that.
        """
        for name, tensor in self._tensors.items():
            if not tensor.numel():
                raise RuntimeError(f"expected {name} with elements, got {tuple(tensor.shape)}")
        if has_workspace:
            size = self._call(f"{function}_workspace_size", ctypes.c_int64)
            self.set_tensor("workspace", in_huge_pages(torch.empty(size, dtype=torch.uint8)))
        self._call(function, None)

    def _call(self, function: str, result: type | None) -> int | None:
        call = getattr(_library(), f"lda_aqu_{self.problem.operator}_{function}")
        call.restype = result
        return call(ctypes.byref(self.problem))


def in_huge_pages(tensor: Tensor) -> Tensor:
    """Ask for huge pages for a new tensor: mapping small ones costs more than filling them."""
    _library().lda_aqu_advise_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


@cache
def _library() -> ctypes.CDLL:
    """The compiled library.

    Raises:
        OSError: it was not built, cannot be loaded, or is not of this version of the package.
    """
    if not LIBRARY.exists():
        raise OSError(
            "the C++ kernels were not built; install the package again with a C++ compiler at hand "
            "that has OpenMP, as GCC from version 12 on (`pip install -v` shows its messages)"
        )
    if not _is_whole(LIBRARY.read_bytes()):
        raise OSError(f"{LIBRARY} is damaged; install the package again")
    library = ctypes.CDLL(str(LIBRARY))
    if not _is_of_this_version(library):
        raise OSError(f"{LIBRARY} is not of this version; install the package again")
    library.lda_aqu_instruction_set.restype = ctypes.c_char_p
    library.lda_aqu_use_instruction_set.argtypes = [ctypes.c_char_p]
    library.lda_aqu_advise_huge_pages.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    library.lda_aqu_advise_huge_pages.restype = None
    return library


def _is_whole(file: bytes) -> bool:
    """Whether an ELF file has all its segments: to load one that was cut short ends the process."""
    if file[:5] != b"\x7fELF\x02":  # of 64 bits; the loader says what is wrong with others
        return True
    try:
        table, size, count = struct.unpack_from("Q14xHH", file, 32)
        segments = [struct.unpack_from("Q16xQ", file, table + i * size + 8) for i in range(count)]
    except struct.error:
        return False
    return all(offset + length <= len(file) for offset, length in segments)


def _is_of_this_version(library: ctypes.CDLL) -> bool:
    """Whether it was built from the sources beside it, and its structs are as large as ours."""
    try:
        built_from, problem_size = library.lda_aqu_sources, library.lda_aqu_problem_size
    except AttributeError:
        return False
    built_from.restype, problem_size.restype = ctypes.c_char_p, ctypes.c_int64
    files = sorted(path for path in SOURCES.rglob("*") if path.suffix in (".cpp", ".h"))
    # As in setup.py.
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    return (not files or built_from() == digest.encode()) and all(
        problem_size(problem.operator.encode()) == ctypes.sizeof(problem)
        for problem in Problem.__subclasses__()
    )
