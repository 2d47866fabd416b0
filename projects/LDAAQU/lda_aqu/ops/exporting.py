"""Whether a model is on its way out of Python, where this project's operators do not exist."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_KEPT = ContextVar("operators are kept in traces", default=False)


def is_exporting() -> bool:
    """Whether a TorchScript trace or an export to ONNX is under way: standard operators alone."""
    return torch.onnx.is_in_onnx_export() or (torch.jit.is_tracing() and not _KEPT.get())


@contextmanager
def operators_kept_in_traces() -> Iterator[None]:
    """For traces that stay in Python, as those in which FLOPs are counted."""
    token = _KEPT.set(True)
    try:
        yield
    finally:
        _KEPT.reset(token)
