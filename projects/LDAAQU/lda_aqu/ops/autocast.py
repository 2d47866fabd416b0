"""What ``torch.autocast`` asks of the operators, which choose their own precision."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def dtype_under_autocast(x: Tensor) -> torch.dtype:
    """The dtype that a convolution of ``x`` would be computed in."""
    device = x.device.type
    # As PyTorch has it, double precision stays.
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def without_autocast(x: Tensor) -> AbstractContextManager:
    """In which operations on the device of ``x`` have the precision of what they are given."""
    device = x.device.type
    # Only where there is something to disable: an exported graph has no such regions.
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
