"""What a tensor is to be like, and in which order it lies in memory."""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from .standard import is_transformed


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Channels-last if (N, C, H, W) ``x`` is, and not contiguous as well; else contiguous."""
    if is_transformed():  # transforms of functions cannot tell
        return torch.contiguous_format
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def laid_out(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """``x`` in a memory format; under transforms of functions, which have none, as it is."""
    return x if is_transformed() else x.contiguous(memory_format=memory_format)


def split_channels(x: Tensor, parts: int) -> Tensor:
    """(N, C, H, W) to (N, parts, C / parts, H, W).

    As ``unflatten`` does; but what reads the size of its result is bound to that size in the graphs
    of the TorchScript-based exporter to ONNX.
    """
    n, channels, *size = x.shape
    return x.reshape(n, parts, channels // parts, *size)


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """What sums of products of these tensors are computed in: float32, or float64 if any is."""
    dtypes = (x.dtype for x in tensors if x is not None)
    return reduce(torch.promote_types, dtypes, torch.float32)


class Layout(NamedTuple):
    """Shape, dtype and memory format of a dense tensor that an operator returns."""

    shape: Sequence[int]
    dtype: torch.dtype
    memory_format: torch.memory_format = torch.contiguous_format

    def empty(self, device: torch.device) -> Tensor:
        """An uninitialised tensor."""
        return torch.empty(
            self.shape, dtype=self.dtype, device=device, memory_format=self.memory_format
        )


def like(x: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Layout:
    """The layout of a gradient of ``x``."""
    return Layout(x.shape, x.dtype, memory_format)
