"""The order in which an operator's result lies in memory."""

import torch
from torch import Tensor


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Channels-last if (N, C, H, W) ``x`` is, and not contiguous as well; else contiguous."""
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def laid_out_as(grad: Tensor, tensor: Tensor) -> Tensor:
    """``grad`` with the strides that ``torch.empty_like(tensor)`` has."""
    target = torch.empty_like(tensor, device="meta")
    if grad.stride() == target.stride():
        return grad
    return torch.empty_like(tensor).copy_(grad)
