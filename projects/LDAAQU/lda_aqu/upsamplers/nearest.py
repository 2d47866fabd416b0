"""Nearest-neighbour upsampling, as in Detectron2's FPN."""

from torch import Tensor
from torch.nn import functional as F

from .base import Upsampler
from .registry import UPSAMPLER_REGISTRY


@UPSAMPLER_REGISTRY.register()
class Nearest(Upsampler):
    """Copy the nearest input pixel. No parameters."""

    def forward(self, x: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """(N, C, H, W) to (N, C, H', W')."""
        return F.interpolate(x, size=self.target_size(x, output_size), mode="nearest")
