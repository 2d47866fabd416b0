"""CARAFE: content-aware reassembly of features."""

import torch
from torch import Tensor, nn

from ..ops import reassemble
from .base import check_odd, check_positive
from .registry import UPSAMPLER_REGISTRY
from .whole_scale import WholeScaleUpsampler, pixel_shuffle


@UPSAMPLER_REGISTRY.register()
class CARAFE(WholeScaleUpsampler):
    """Each output pixel is a weighted sum of a window of the input, with weights of its own.

    Wang et al., "CARAFE: Content-Aware ReAssembly of FEatures", ICCV 2019. Parameter names, shapes
    and initial values are those of the published implementation (open-mmlab/mmcv, ``CARAFEPack``).
    74,148 parameters at 256 channels, published as 74k. Softmax and sums are in float32 at least.
    Other sizes of output: see :class:`WholeScaleUpsampler`.

    Args:
        in_channels: C.
        scale_factor: s, whole.
        compressed_channels: C_m, channels of what the weights are predicted from.
        kernel_size: k_up, odd: windows are of k_up x k_up pixels.
        encoder_kernel_size: k_encoder, odd: kernel of the convolution that predicts the weights.

    Raises:
        InputError: values that do not fit.
    """

    config_node = "CARAFE"

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
        self.content_encoder = nn.Conv2d(
            compressed_channels,
            (kernel_size * self.scale_factor) ** 2,
            encoder_kernel_size,
            padding=encoder_kernel_size // 2,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: weights that hardly differ, so it starts as a mean of windows."""
        nn.init.xavier_uniform_(self.channel_compressor.weight)
        nn.init.normal_(self.content_encoder.weight, std=0.001)
        for convolution in (self.channel_compressor, self.content_encoder):
            nn.init.zeros_(convolution.bias)

    def upsample(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, sH, sW)."""
        logits = self.content_encoder(self.channel_compressor(x))
        logits = pixel_shuffle(logits, self.scale_factor)
        kernels = logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))
        return reassemble(x, kernels[:, None])
