"""When standard operators of PyTorch take the place of this project's.

They do on a model's way out of Python, where this project's operators do not exist, and under the
transforms of functions, which know how to act on standard operators alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch.autograd import forward_ad

_KEPT = ContextVar("operators are kept in traces", default=False)


def is_exporting() -> bool:
    """Whether a TorchScript trace or an export to ONNX is under way."""
    return torch.onnx.is_in_onnx_export() or (torch.jit.is_tracing() and not _KEPT.get())


def is_transformed() -> bool:
    """Whether a transform of ``torch.func``, or forward-mode differentiation, is active."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or _is_in_forward_mode()


def _is_in_forward_mode() -> bool:
    return forward_ad._current_level >= 0


@contextmanager
def operators_kept_in_traces() -> Iterator[None]:
    """For traces that stay in Python, as those in which FLOPs are counted."""
    token = _KEPT.set(True)
    try:
        yield
    finally:
        _KEPT.reset(token)
