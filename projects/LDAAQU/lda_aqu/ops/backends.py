"""The implementations of the operators, and which of them computes a call."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch

from ..errors import InputError
from . import cpp, plain, triton_backend

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """An implementation: for each operator a module with ``forward`` and ``backward``.

    They are as those of :mod:`.plain`.
    """

    name: str
    description: str
    attention: ModuleType
    offset_network: ModuleType
    normalized_projection: ModuleType
    unavailable: Callable[[torch.device], str]
    """Why it cannot run on a device; empty if it can."""


# In the order in which they are preferred. GPUs have libraries for convolutions and projections.
BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "cpp",
            "C++ kernels for the CPU",
            cpp.attention,
            cpp.offset_network,
            cpp.projection,
            cpp.unavailable,
        ),
        Backend(
            "triton",
            "Triton kernels for GPUs",
            triton_backend,
            plain.offset_network,
            plain.normalized_projection,
            triton_backend.unavailable,
        ),
        Backend(
            "plain",
            "plain PyTorch",
            plain.attention,
            plain.offset_network,
            plain.normalized_projection,
            lambda device: "",
        ),
    )
}

BACKEND_CHOICES = ("auto", *BACKENDS)
"""What a caller may ask for; "auto" is the first backend that can run."""


def check_backend(name: str) -> None:
    """Raise InputError unless ``name`` is one of :data:`BACKEND_CHOICES`."""
    if name not in BACKEND_CHOICES:
        raise InputError(f"unknown backend {name!r}; known: {', '.join(BACKEND_CHOICES)}")


@cache
def choose_backend(name: str, device: torch.device) -> Backend:
    """The backend that a call for ``name`` on ``device`` runs; logs it once, with its reasons.

    Raises:
        InputError: unknown name.
        RuntimeError: a backend was asked for by name and cannot run there; gives the reason.
    """
    check_backend(name)
    if name != "auto":
        reason = BACKENDS[name].unavailable(device)
        if reason:
            raise RuntimeError(f"backend {name!r} cannot run on {device}: {reason}")
        return BACKENDS[name]
    passed_over = []
    for backend in BACKENDS.values():
        reason = backend.unavailable(device)
        if not reason:
            break
        passed_over.append(f"not {backend.name}: {reason}")
    logger.info(
        "Local deformable attention on %s: %s (%s)%s",
        device,
        backend.name,
        backend.description,
        "".join(f"; {reason}" for reason in passed_over),
    )
    return backend
