"""DLU: CARAFE whose kernels are sampled from a small space of them."""

import torch
from torch import Tensor, nn

from ..ops import reassemble, sample_bilinear
from .base import check_odd, check_positive
from .registry import UPSAMPLER_REGISTRY
from .whole_scale import WholeScaleUpsampler, pixel_shuffle


@UPSAMPLER_REGISTRY.register()
class DLU(WholeScaleUpsampler):
    """Windows of the input, weighted by kernels that are sampled among those of its pixels.

    Fu et al., "Lighten CARAFE: Dynamic Lightweight Upsampling with Guided Reassemble Kernels", ICPR
    2024. CARAFE predicts a kernel for each output pixel; here there is one for each input pixel,
    and an output pixel reads them bilinearly where an offset leads, in input pixels, from the one
    that it lies over. Kernels are normalised before they are read; beyond the border they are
    those of the border.

    Parameter names, shapes and initial values are those of the published implementation
    (github.com/Fu0511/Dynamic-Lightweight-Upsampling, ``DLUPack``). 35,489 parameters at 256
    channels: the published 0.6 MB for the four of Faster R-CNN's FPN; at 16x they are 91 % fewer
    than CARAFE's, as published. Softmax, positions and sums are in float32 at least. Other sizes of
    output: see :class:`WholeScaleUpsampler`.

    Args:
        in_channels: C.
        scale_factor: s, whole.
        compressed_channels: channels of what kernels and offsets are predicted from.
        kernel_size: k_up, odd: windows are of k_up x k_up pixels.
        encoder_kernel_size: odd: kernel of the convolutions that predict kernels and offsets.

    Raises:
        InputError: values that do not fit.
    """

    config_node = "DLU"

    def __init__(
        self,
        in_channels: int,
        scale_factor: float = 2,
        compressed_channels: int = 64,
        kernel_size: int = 5,
        encoder_kernel_size: int = 3,
    ) -> None:
        super().__init__(in_channels, scale_factor)
        check_positive(compressed_channels=compressed_channels)
        check_odd(kernel_size=kernel_size, encoder_kernel_size=encoder_kernel_size)
        self.channel_compressor = nn.Conv2d(in_channels, compressed_channels, 1)
        self.kernel_space_generator, self.conv_offset = (
            nn.Conv2d(
                compressed_channels,
                channels,
                encoder_kernel_size,
                padding=encoder_kernel_size // 2,
            )
            for channels in (kernel_size**2, 2 * self.scale_factor**2)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: no offsets, kernels that hardly differ, so a mean of windows."""
        nn.init.xavier_uniform_(self.channel_compressor.weight)
        nn.init.normal_(self.kernel_space_generator.weight, std=0.001)
        nn.init.zeros_(self.conv_offset.weight)
        for convolution in self.children():
            nn.init.zeros_(convolution.bias)

    def upsample(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, sH, sW)."""
        compressed = self.channel_compressor(x)
        logits = self.kernel_space_generator(compressed)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        kernels = logits.softmax(1, dtype=dtype)
        offsets = pixel_shuffle(self.conv_offset(compressed), self.scale_factor).to(dtype)
        rows, columns = (
            torch.arange(size, device=x.device) // self.scale_factor for size in offsets.shape[2:]
        )
        positions = torch.stack((rows[:, None] + offsets[:, 1], columns + offsets[:, 0]), 1)
        return reassemble(x, sample_bilinear(kernels, positions[:, None])[:, None])
