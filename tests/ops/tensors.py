"""Tensors of every layout in memory, and how far they are from what is expected."""

import torch
from torch import Tensor

LAYOUTS = ["contiguous", "channels_last", "cut", "transposed"]


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in one of ``LAYOUTS``; channels-last is for maps alone."""
    return {
        "contiguous": lambda: x,
        "channels_last": lambda: x.contiguous(memory_format=torch.channels_last),
        "cut": lambda: torch.cat([x, x], -1)[..., : x.shape[-1]],
        "transposed": lambda: x.mT.contiguous().mT,
    }[layout]()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, over the largest of the values that are expected, in float64."""
    largest = expected.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return ((actual.double() - expected).abs().max() / largest).item()
