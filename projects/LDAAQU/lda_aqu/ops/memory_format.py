"""The order in which an operator's result lies in memory."""

from collections.abc import Sequence

import torch
from torch import Tensor


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Channels-last if (N, C, H, W) ``x`` is, and not contiguous as well; else contiguous."""
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def empty_of_size(x: Tensor, size: Sequence[int]) -> Tensor:
    """Uninitialised, as (N, C, H, W) ``x`` but of another ``size`` (Y, X), and channels-last."""
    shape, options = (*x.shape[:2], *size), {"dtype": x.dtype, "device": x.device}
    return torch.empty(shape, **options, memory_format=torch.channels_last)


def laid_out_as(grad: Tensor, tensor: Tensor) -> Tensor:
    """``grad`` with the strides that ``torch.empty_like(tensor)`` has."""
    target = torch.empty_like(tensor, device="meta")
    if grad.stride() == target.stride():
        return grad
    return torch.empty_like(tensor).copy_(grad)
