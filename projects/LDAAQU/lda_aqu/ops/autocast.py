"""What ``torch.autocast`` asks of the operators, which choose their own precision."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def dtype_under_autocast(x: Tensor) -> torch.dtype:
    """The dtype that a convolution of ``x`` would be computed in."""
    # As PyTorch has it, double precision stays.
    if _is_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def without_autocast(x: Tensor) -> AbstractContextManager:
    """In which operations on the device of ``x`` have the precision of what they are given."""
    device = x.device.type
    # Only where there is something to disable: an exported graph has no such regions.
    if _is_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def _is_enabled(device: str) -> bool:
    # "meta" has no autocast, of which it might be asked whether it is enabled.
    return device != "meta" and torch.is_autocast_enabled(device)
