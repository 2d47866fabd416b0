"""A hook that writes the memory of a GPU into a run's metrics."""

import torch
from detectron2.engine import HookBase


class PeakMemory(HookBase):
    """Records ``max_mem``, the most that PyTorch has allocated on a GPU until now, in MiB.

    Args:
        device: the GPU that the model is on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def after_step(self) -> None:
        """Record it for the iteration."""
        allocated = torch.cuda.max_memory_allocated(self._device) / 2**20
        self.trainer.storage.put_scalar("max_mem", allocated, smoothing_hint=False)
