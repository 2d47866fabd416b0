"""How the kernels of this folder are launched: which blocks, warps and stages, on which device.

:data:`.configurations.TABLE` is where these are chosen: nothing is measured when a kernel is first
called, and nothing is compiled anew for another size of maps. Where the environment variable
``LDA_AQU_TRITON_TUNE`` is 1, all rows of a kernel are timed instead at the first call with each set
of dtypes and widths; Triton keeps the fastest on disk, beside its compiled kernels. With
``torch.use_deterministic_algorithms(True)`` the table decides in any case: blocks order sums.
"""

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import ahead, is_interpreted
from .configurations import TABLE, Row

MAX_INT32_ELEMENTS = 2**31  # tensors with fewer are addressed in 32 bits


def launch(
    kernel: Any,
    programs: tuple[int, ...] | Callable[[dict[str, Any]], tuple[int, ...]],
    *arguments: Tensor | int | float | None,
    read: Tensor,
    width: int,
    **constants: Any,
) -> None:
    """Run a kernel as its row of the table says, on the device of what it reads.

    Small maps take a GPU no longer than this takes the CPU: what a call has in common with others
    is found once. In the place of launching what reads a tensor on "meta" the rehearsal that is
    under way notes it.

    Args:
        kernel: a function of ``triton.jit``.
        programs: how many; or called with all parameters by name, the blocks of the row among them.
        arguments: in the order of the kernel's parameters.
        read: the tensor whose dtype and device choose the row.
        width: the number of channels that chooses it.
        constants: more parameters, by name; those that the kernel does not have are left out.
    """
    rehearsal = ahead.rehearsal() if read.is_meta else None
    device = rehearsal.device if rehearsal else read.device
    capability, names = _capability(device), _parameters(kernel)
    constants = {name: value for name, value in constants.items() if name in names}
    if not is_tuning():
        constants |= _options(kernel.__name__, read.itemsize, width, capability)
        if rehearsal:
            rehearsal.launches[kernel].append((arguments, constants))
        else:
            ahead.wait_for(kernel)
            with ahead.on(device):
                kernel[programs](*arguments, **constants)
    elif not rehearsal:
        key = tuple(n for n, value in constants.items() if not isinstance(value, tl.dtype))
        with ahead.on(device):
            _tuned(kernel, capability, key)[programs](*arguments, **constants)


@cache
def _parameters(kernel: Any) -> frozenset[str]:
    return frozenset(kernel.arg_names)


@cache
def _options(kernel: str, itemsize: int, width: int, capability: tuple[int, int]) -> dict[str, Any]:
    return choose(kernel, itemsize, width, capability).config().all_kwargs()


def choose(kernel: str, itemsize: int, width: int, capability: tuple[int, int]) -> Row:
    """The row of the table for a call."""
    return next(
        row
        for row in TABLE[kernel]
        if itemsize <= row.max_itemsize
        and width <= row.max_width
        and capability >= row.min_capability
    )


def is_tuning() -> bool:
    """Whether rows are chosen by their measured time."""
    return (
        os.environ.get("LDA_AQU_TRITON_TUNE", "0") == "1"
        and not is_interpreted()
        and not torch.are_deterministic_algorithms_enabled()
    )


@cache
def _tuned(kernel: Any, capability: tuple[int, int], key: tuple[str, ...]) -> Any:
    """A kernel that is tuned for each set of values of the constants ``key``.

    Triton adds the dtypes of the tensors, and writes the values to a JSON file.
    """
    configs = [row.config() for row in TABLE[kernel.__name__] if capability >= row.min_capability]
    return triton.autotune(configs, key=key, cache_results=True)(kernel)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    if device.type != "cuda" or torch.version.hip is not None:
        return (0, 0)
    return torch.cuda.get_device_capability(device)


def index_dtype(elements: int) -> torch.dtype:
    """What tensors of so many elements, at most, are addressed in."""
    return torch.int32 if elements < MAX_INT32_ELEMENTS else torch.int64


@cache
def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """What Triton calls a dtype."""
    return getattr(tl, str(dtype).removeprefix("torch."))
