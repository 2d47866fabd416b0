"""When standard operators of PyTorch take the place of this project's.

They do on a model's way out of Python, where this project's operators do not exist, and under the
transforms of functions, which know how to act on standard operators alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.autograd import forward_ad

_asked_for = 0  # times at once; not a ContextVar, which Dynamo of PyTorch 2.6 cannot trace


@contextmanager
def standard_operators() -> Iterator[None]:
    """Let ``torch.export`` write standard operators, for a program to run without this package.

    Until it ends they are computed with, in all threads.
    """
    global _asked_for
    _asked_for += 1
    try:
        yield
    finally:
        _asked_for -= 1


def is_exporting() -> bool:
    """Whether a TorchScript trace or an export to ONNX is under way, or it was asked for."""
    return torch.onnx.is_in_onnx_export() or torch.jit.is_tracing() or _asked_for > 0


def is_transformed() -> bool:
    """Whether a transform of ``torch.func``, or forward-mode differentiation, is active."""
    if is_forward_mode():
        return True
    # Within a compiled function the transforms of it cannot be told.
    return (
        not torch.compiler.is_dynamo_compiling()
        and torch._C._functorch.peek_interpreter_stack() is not None
    )


def is_forward_mode() -> bool:
    """Whether forward-mode differentiation is active, as it is in ``torch.func.jvp``, too."""
    return forward_ad._current_level >= 0
