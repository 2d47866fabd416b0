"""Deconvolution: transposed convolution as an upsampler."""

from torch import Tensor, nn

from ..errors import InputError
from .registry import UPSAMPLER_REGISTRY
from .whole_scale import WholeScaleUpsampler


@UPSAMPLER_REGISTRY.register()
class Deconv(WholeScaleUpsampler):
    """A transposed convolution whose stride is the scale factor.

    Kernel, padding and initial values (Xavier uniform, no bias to start with) are those of the FPN
    that CARAFE was compared in (Wang et al., ICCV 2019; open-mmlab/mmdetection, ``FPN_CARAFE``),
    where it is 3 x 3: 590,080 parameters at 256 channels, published as 590k. Other sizes of
    output: see :class:`WholeScaleUpsampler`.

    Args:
        in_channels: C.
        scale_factor: s, whole.
        overlap: by how many pixels the kernel is wider than s, so that the outputs of neighbouring
            input pixels overlap. 0 is the deconvolution of Mask R-CNN's mask head.

    Raises:
        InputError: values that do not fit.
    """

    config_node = "DECONV"

    def __init__(self, in_channels: int, scale_factor: float = 2, overlap: int = 1) -> None:
        super().__init__(in_channels, scale_factor)
        if overlap < 0:
            raise InputError(f"overlap must be at least 0, got {overlap}")
        self.overlap = overlap
        self.deconv = nn.ConvTranspose2d(
            in_channels, in_channels, self.scale_factor + overlap, stride=self.scale_factor
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values."""
        nn.init.xavier_uniform_(self.deconv.weight)
        nn.init.zeros_(self.deconv.bias)

    def upsample(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, sH, sW)."""
        start = (self.overlap + 1) // 2  # what is painted beyond the map on either side is cut off
        height, width = (start + size * self.scale_factor for size in x.shape[2:])
        return self.deconv(x)[:, :, start:height, start:width].to(x.dtype)
