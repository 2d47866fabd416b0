"""The backends, which compute the operators, and which of them computes a call."""

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from . import cpp, plain, triton

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """The folder of this name beside this file, with a file for each kind of operator it computes.

    Its files are named as those of :mod:`.plain`, which computes all operators, and so are the
    functions in them. Beside these, a file may have a function ``unavailable``: it is called with
    the name of a function and its inputs, and returns why it cannot compute them, or "".

    A folder may have a file ``ahead`` with a function ``prepare``: it is called with a device and a
    function that calls, once, what is about to be called on it, with tensors on "meta".
    """

    name: str
    description: str
    unavailable: Callable[[torch.device], str]
    """Why it cannot run on a device, or ""."""

    def file(self, name: str) -> ModuleType | None:
        """Its file of that name, or None where it computes no operators of that kind."""
        module = f"{__package__}.{self.name}.{name}"
        return import_module(module) if importlib.util.find_spec(module) else None


# In the order in which they are preferred.
BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("cpp", "C++ kernels for the CPU", cpp.unavailable),
        Backend("triton", "Triton kernels for GPUs", triton.unavailable),
        Backend("plain", "plain PyTorch", plain.unavailable),
    )
}

BACKEND_CHOICES = ("auto", *BACKENDS)
"""What a caller may ask for; "auto" is the first backend that can compute a call."""

BACKEND_VARIABLE = "LDA_AQU_BACKEND"
"""Of the environment: the backend in the place of "auto"."""


def check_backend(name: str, source: str = "") -> None:
    """Raise InputError, which begins with ``source``, unless it is in :data:`BACKEND_CHOICES`."""
    if name not in BACKEND_CHOICES:
        raise InputError(f"{source}unknown backend {name!r}; known: {', '.join(BACKEND_CHOICES)}")


def choose_implementation(
    backend: str, file: str, function: str, inputs: Sequence[Any]
) -> Callable[..., Any]:
    """The function that computes a call: see :func:`choose`."""
    _, module = choose(backend, file, function, inputs)
    return getattr(module, function)


def choose(
    backend: str, file: str, function: str, inputs: Sequence[Any]
) -> tuple[Backend, ModuleType]:
    """The backend that computes a call, and its file; it is logged once which that is, and why.

    Args:
        backend: one of :data:`BACKEND_CHOICES`. One that computes no operators of this kind at all
            leaves them to the plain backend. In the place of "auto" is what ``LDA_AQU_BACKEND``
            names in the environment.
        file: name of the file of the backends that has the function.
        function: its name.
        inputs: what it will be called with.

    Raises:
        InputError: ``LDA_AQU_BACKEND`` is no backend.
        RuntimeError: a backend was asked for by name and cannot compute it; gives the reason.
    """
    device = next(value.device for value in inputs if isinstance(value, Tensor))
    backend = _or_from_environment(backend)
    candidates, passed_over = _candidates(backend, file, device)
    for candidate, module in candidates:
        unavailable = getattr(module, "unavailable", None)
        reason = unavailable(function, *inputs) if unavailable else ""
        if not reason:
            break
        if backend != "auto":
            raise RuntimeError(f"backend {backend!r} cannot compute {function}: {reason}")
        passed_over = (*passed_over, f"not {candidate.name}: {reason}")
    _log(file, device, candidate, passed_over)
    return candidate, module


def _or_from_environment(backend: str) -> str:
    """A backend; in the place of "auto" what the environment names."""
    if backend == "auto" and BACKEND_VARIABLE in os.environ:
        backend = os.environ[BACKEND_VARIABLE]
        check_backend(backend, f"{BACKEND_VARIABLE}: ")
    return backend


Candidates = tuple[tuple[Backend, ModuleType], ...]


@cache
def _candidates(name: str, file: str, device: torch.device) -> tuple[Candidates, tuple[str, ...]]:
    """The backends that may compute a file's operators on a device; why others may not."""
    if name != "auto" and (reason := BACKENDS[name].unavailable(device)):
        raise RuntimeError(f"backend {name!r} cannot run on {device}: {reason}")
    candidates, passed_over = [], []
    for backend in BACKENDS.values() if name == "auto" else (BACKENDS[name], BACKENDS["plain"]):
        reason = backend.unavailable(device)
        module = None if reason else backend.file(file)
        if module:
            candidates.append((backend, module))
        else:
            passed_over.append(f"not {backend.name}: {reason or 'it does not compute this'}")
    return tuple(candidates), tuple(passed_over)


@cache
def _log(file: str, device: torch.device, backend: Backend, passed_over: Sequence[str]) -> None:
    """Log once what computes a file's operators on a device, and why no other backend does."""
    logger.info(
        "%s on %s: %s (%s)%s",
        file.replace("_", " ").capitalize(),
        device,
        backend.name,
        backend.description,
        "".join(f"; {reason}" for reason in passed_over),
    )


def describe(device: torch.device) -> Iterator[str]:
    """For each backend a line that says whether it can run on a device, or why it cannot."""
    for backend in BACKENDS.values():
        reason = backend.unavailable(device)
        yield f"{device.type:5} {backend.name:7} {'no: ' + reason if reason else 'available'}"
    for file in ("projection", "offset_network", "attention", "reassembly"):
        (chosen, _), *_ = _candidates(_or_from_environment("auto"), file, device)[0]
        yield f"{device.type:5} {file.replace('_', ' ')}: {chosen.name}"
