"""Pixel shuffle: channels of the input size become pixels of the output size."""

from torch import Tensor, nn

from .base import check_odd
from .registry import UPSAMPLER_REGISTRY
from .whole_scale import WholeScaleUpsampler, pixel_shuffle


@UPSAMPLER_REGISTRY.register()
class PixelShuffle(WholeScaleUpsampler):
    """A convolution to s² C channels, which are then laid out as s x s pixels of C channels.

    Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel
    Convolutional Neural Network", CVPR 2016. Kernel and initial values (Xavier uniform, no bias to
    start with) are those of the FPN that CARAFE was compared in (Wang et al., ICCV 2019;
    open-mmlab/mmcv, ``PixelShufflePack``), and so are the parameters' names: 2,360,320 parameters
    at 256 channels, published as 2.4M. Other sizes of output: see :class:`WholeScaleUpsampler`.

    Args:
        in_channels: C.
        scale_factor: s, whole.
        kernel_size: kernel of the convolution, odd.

    Raises:
        InputError: values that do not fit.
    """

    config_node = "PIXEL_SHUFFLE"

    def __init__(self, in_channels: int, scale_factor: float = 2, kernel_size: int = 3) -> None:
        super().__init__(in_channels, scale_factor)
        check_odd(kernel_size=kernel_size)
        self.upsample_conv = nn.Conv2d(
            in_channels,
            in_channels * self.scale_factor**2,
            kernel_size,
            padding=kernel_size // 2,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values."""
        nn.init.xavier_uniform_(self.upsample_conv.weight)
        nn.init.zeros_(self.upsample_conv.bias)

    def upsample(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, sH, sW)."""
        return pixel_shuffle(self.upsample_conv(x), self.scale_factor).to(x.dtype)
