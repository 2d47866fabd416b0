"""Bilinear upsampling, as in Detectron2's semantic head."""

from torch import Tensor
from torch.nn import functional as F

from .base import Upsampler
from .registry import UPSAMPLER_REGISTRY


@UPSAMPLER_REGISTRY.register()
class Bilinear(Upsampler):
    """Interpolate between the four nearest input pixels, corners not aligned. No parameters."""

    def forward(self, x: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """(N, C, H, W) to (N, C, H', W')."""
        size = self.target_size(x, output_size)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
