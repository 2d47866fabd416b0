"""How the kernels of this folder are launched: which blocks, warps and stages, on which device.

:data:`TABLE` is where these are chosen: nothing is measured when a kernel is first called, and
nothing is compiled anew for another size of maps. Where the environment variable
``LDA_AQU_TRITON_TUNE`` is 1, all rows of a kernel are timed instead at the first call with each set
of dtypes and widths; Triton keeps the fastest on disk, beside its compiled kernels. With
``torch.use_deterministic_algorithms(True)`` the table decides in any case: blocks order sums.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, reduce
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import is_interpreted

MAX_INT32_ELEMENTS = 2**31  # tensors with fewer are addressed in 32 bits


@dataclass(frozen=True)
class Row:
    """A configuration of a kernel, and for which calls it is meant."""

    blocks: dict[str, int] = field(default_factory=dict)
    """Values of the kernel's parameters that are chosen here."""
    num_warps: int = 4
    num_stages: int = 1
    max_registers: int | None = None
    """Of a thread. Left to choose, the compiler for NVIDIA's GPUs may spill some to save others."""
    max_itemsize: int = 8
    """Bytes of an element of what is read, at most."""
    max_width: int = 2**31
    """Channels of what is read, at most."""
    min_capability: tuple[int, int] = (0, 0)
    """Of an NVIDIA GPU; for all others, and the interpreter, this is (0, 0)."""

    def config(self) -> triton.Config:
        """The same as Triton has it."""
        return triton.Config(
            self.blocks,
            num_warps=self.num_warps,
            num_stages=self.num_stages,
            maxnreg=self.max_registers,
        )


HALF = 2
"""Bytes of an element in half precision."""

# Chosen by what the compiler makes of them for sm_90 at 256 channels: none spills registers.
_PIXELS = (
    # Tiles of pixels by rows and columns, the latter so that a row is at least 32 bytes of a map;
    # channels at once; and of these, those that lie side by side for the lanes of one pixel.
    Row(
        {"TILE_ROWS": 8, "TILE_COLUMNS": 16, "PASS_BYTES": 256, "CHUNK_BYTES": 64},
        num_warps=16,
        max_itemsize=HALF,
        min_capability=(8, 0),
    ),
    Row(
        {"TILE_ROWS": 4, "TILE_COLUMNS": 16, "PASS_BYTES": 512, "CHUNK_BYTES": 128},
        num_warps=16,
        max_registers=128,
        min_capability=(8, 0),
    ),
    Row({"TILE_ROWS": 4, "TILE_COLUMNS": 16, "PASS_BYTES": 256, "CHUNK_BYTES": 64}, num_warps=8),
)

TABLE: dict[str, tuple[Row, ...]] = {
    "forward_kernel": _PIXELS,
    "backward_pixels_kernel": _PIXELS,
    "samples_kernel": (Row({"PIXELS": 64}),),
    "backward_bias_kernel": (Row({"PIXELS": 64}),),
    "backward_source_kernel": (
        Row({"PASS_BYTES": 512, "CHUNK_BYTES": 128, "STRIP": 8, "SAMPLES": 16}, num_warps=1),
    ),
}
"""By the kernel's name; of its rows the first that is meant for a call is taken."""


def launch(
    kernel: Any,
    programs: tuple[int, ...] | Callable[[dict[str, Any]], tuple[int, ...]],
    *arguments: Tensor | int | float | None,
    read: Tensor,
    width: int,
    **constants: Any,
) -> None:
    """Run a kernel as its row of the table says, on the device of what it reads.

    Args:
        kernel: a function of ``triton.jit``.
        programs: how many; or called with all parameters by name, the blocks of the row among them.
        arguments: in the order of the kernel's parameters.
        read: the tensor whose dtype and device choose the row.
        width: the number of channels that chooses it.
        constants: more parameters, by name.
    """
    device = read.device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        if is_tuning():
            _tuned(kernel, _capability(device))[programs](*arguments, **constants)
        else:
            row = choose(kernel.__name__, read.dtype.itemsize, width, _capability(device))
            kernel[programs](*arguments, **constants, **row.config().all_kwargs())


def choose(kernel: str, itemsize: int, width: int, capability: tuple[int, int]) -> Row:
    """The row of :data:`TABLE` for a call."""
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
def _tuned(kernel: Any, capability: tuple[int, int]) -> Any:
    rows = [row for row in TABLE[kernel.__name__] if capability >= row.min_capability]
    # All that the compiler knows but what is to be chosen; dtypes Triton adds itself.
    key = [p.name for p in kernel.params if p.is_constexpr and p.name not in rows[0].blocks]
    configs = [row.config() for row in rows]
    return triton.autotune(configs, key=key, cache_results=True)(kernel)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    if device.type != "cuda" or torch.version.hip is not None:
        return (0, 0)
    return torch.cuda.get_device_capability(device)


def compute_dtype(tensors: Sequence[Tensor | None]) -> torch.dtype:
    """What sums of products of these tensors are computed in: float32, or float64 if any is."""
    dtypes = (x.dtype for x in tensors if x is not None)
    return reduce(torch.promote_types, dtypes, torch.float32)


def index_dtype(elements: int) -> torch.dtype:
    """What tensors of so many elements, at most, are addressed in."""
    return torch.int32 if elements < MAX_INT32_ELEMENTS else torch.int64


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """What Triton calls a dtype."""
    return getattr(tl, str(dtype).removeprefix("torch."))
