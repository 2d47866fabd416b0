"""When standard operators of PyTorch take the place of this project's.

They do on a model's way out of Python, where this project's operators do not exist, and under the
transforms of functions, which know how to act on standard operators alone.
"""

import torch
from torch.autograd import forward_ad


def is_exporting() -> bool:
    """Whether a TorchScript trace or an export to ONNX is under way."""
    return torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()


def is_transformed() -> bool:
    """Whether a transform of ``torch.func``, or forward-mode differentiation, is active."""
    if torch.compiler.is_compiling():
        return False
    is_in_function_transform = torch._C._functorch.peek_interpreter_stack() is not None
    return is_in_function_transform or forward_ad._current_level >= 0
