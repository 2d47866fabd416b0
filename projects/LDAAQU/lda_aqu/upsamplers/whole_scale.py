"""What the upsamplers share that make a fixed number of output pixels of each input pixel."""

from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from .base import Upsampler, upper_left


class WholeScaleUpsampler(Upsampler):
    """Base of the upsamplers that make s x s output pixels of each input pixel.

    A subclass implements :meth:`upsample`, to the s-fold size. Of that map, an output that is
    smaller by less than s either way is the upper left part, as the map that was downsampled by s
    was the larger by the rounding; an output of any other size is interpolated bilinearly. A model
    that is traced or exported goes on doing which of the two it did then.

    Args:
        in_channels: C.
        scale_factor: s, whole.

    Raises:
        InputError: ``scale_factor`` is not whole and positive.
    """

    def __init__(self, in_channels: int, scale_factor: float = 2) -> None:
        super().__init__(in_channels, scale_factor)
        if scale_factor != int(scale_factor):
            raise InputError(
                f"{type(self).__name__} needs a whole scale_factor, got {scale_factor}; "
                "a call may ask for any output_size"
            )
        self.scale_factor = int(scale_factor)

    def upsample(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, sH, sW)."""
        raise NotImplementedError

    def forward(self, x: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """(N, C, H, W) to (N, C, H', W')."""
        height, width = self.target_size(x, output_size)
        y = self.upsample(x)
        # Cropped also where nothing is cut off, so that a graph traced here crops other sizes.
        if all(0 <= n < self.scale_factor for n in (y.shape[2] - height, y.shape[3] - width)):
            return upper_left(y, height, width)
        return F.interpolate(y, size=(height, width), mode="bilinear", align_corners=False)


def pixel_shuffle(x: Tensor, scale_factor: int) -> Tensor:
    """(N, s² C, H, W) to (N, C, sH, sW), as ``F.pixel_shuffle``, whose gradient fails for N = 0."""
    n, channels, height, width = x.shape
    channels //= scale_factor**2
    # Not by `unflatten`: see `lda_aqu.ops.layout.split_channels`.
    blocks = x.reshape(n, channels, scale_factor, scale_factor, height, width)
    size = (height * scale_factor, width * scale_factor)
    return blocks.permute(0, 1, 4, 2, 5, 3).reshape(n, channels, *size)
