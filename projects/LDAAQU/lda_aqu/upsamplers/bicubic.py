"""Bicubic upsampling."""

from torch import Tensor
from torch.nn import functional as F

from .base import Upsampler
from .registry import UPSAMPLER_REGISTRY


@UPSAMPLER_REGISTRY.register()
class Bicubic(Upsampler):
    """Interpolate between the 4 x 4 nearest input pixels, corners not aligned. No parameters.

    Cubic convolution (Keys, IEEE Transactions on Acoustics, Speech, and Signal Processing, 1981)
    with a = -0.75; the border is repeated. Any size of output.
    """

    def forward(self, x: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """(N, C, H, W) to (N, C, H', W')."""
        size = self.target_size(x, output_size)
        return F.interpolate(x, size=size, mode="bicubic", align_corners=False)
