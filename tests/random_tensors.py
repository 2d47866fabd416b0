"""Random tensors that are the same on every device."""

from collections.abc import Callable

import torch
from torch import Tensor


def normals(seed: int) -> Callable[..., Tensor]:
    """A function ``normal(*shape, dtype=None)``: standard normal tensors, one after the other.

    They are drawn on the CPU, and lie on the device that the test runs on.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype | None = None) -> Tensor:
        drawn = torch.randn(shape, generator=generator, dtype=dtype, device="cpu")
        return drawn.to(torch.get_default_device())

    return normal
