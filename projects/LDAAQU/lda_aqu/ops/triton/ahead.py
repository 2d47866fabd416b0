"""Compiles the kernels of a call and of its gradient side by side, before they are launched.

Triton compiles a kernel when it is first launched, LDA-AQU's in 0.2 to 3 s each: one after the
other they hold up the first step of a run by a quarter of a minute. Most of the compiler is not
Python: threads share the work, and what the backward pass launches is compiled while the forward
pass is under way.
"""

import contextlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import torch

from . import is_interpreted

logger = logging.getLogger(__name__)

# With so many the kernel that takes longest takes as long as all others.
THREADS = min(8, os.cpu_count() or 1)


class Rehearsal(NamedTuple):
    """What calls with tensors on "meta" would launch on a device."""

    device: torch.device
    launches: dict[Any, list[tuple[tuple, dict[str, Any]]]]
    """For each kernel the values of its parameters, and the compiler's options."""


_rehearsal: ContextVar[Rehearsal] = ContextVar("rehearsal")
_compiling: dict[Any, list[Future]] = defaultdict(list)


def prepare(device: torch.device, rehearse: Callable[[], Any]) -> None:
    """Start to compile what ``rehearse`` launches, for a device.

    It is called in a thread of its own: what modes a caller is in, of autograd or others, does not
    concern it. Should it fail, kernels are compiled when they are launched.
    """
    if is_interpreted():
        return
    try:
        _rehearsals().submit(_start, device, rehearse).result()
    except Exception:
        logger.warning("Kernels are not compiled ahead of their launch", exc_info=True)


def rehearsal() -> Rehearsal:
    """The one that is under way."""
    return _rehearsal.get()


def wait_for(kernel: Any) -> None:
    """Wait until all that is compiled ahead of a kernel is; an error comes back at its launch."""
    if kernel in _compiling:
        wait(_compiling.pop(kernel, ()))  # another thread may have been first


def on(device: torch.device) -> contextlib.AbstractContextManager:
    """In which kernels are compiled for, and launched on, a device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _start(device: torch.device, rehearse: Callable[[], Any]) -> None:
    launches = defaultdict(list)
    token = _rehearsal.set(Rehearsal(device, launches))
    try:
        with torch.no_grad():
            rehearse()
    finally:
        _rehearsal.reset(token)
    for kernel, calls in launches.items():
        _compiling[kernel].append(_compilers().submit(_compile, device, kernel, calls))


def _compile(device: torch.device, kernel: Any, calls: list[tuple[tuple, dict[str, Any]]]) -> None:
    with on(device):
        for arguments, constants in calls:
            kernel.warmup(*arguments, grid=(1,), **constants)


@cache
def _rehearsals() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "lda_aqu_rehearsal")


@cache
def _compilers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "lda_aqu_compiler")
