"""FADE: upsampling that fuses the assets of decoder and encoder."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import reassemble
from .base import GuidedUpsampler, check_odd, check_positive
from .registry import UPSAMPLER_REGISTRY


@UPSAMPLER_REGISTRY.register()
class FADE(GuidedUpsampler):
    """Windows of the input weighted by what both maps show, blended with the guide by a gate.

    Lu et al., "FADE: Fusing the Assets of Decoder and Encoder for Task-Agnostic Upsampling", ECCV
    2022. The weights come from a semi-shift convolution: one kernel moves over the guide at every
    output pixel and over the input at every input pixel, and the two are added. The gate, one value
    for each input pixel, says how much of the guide itself enters the output. A guide of other
    channels than the input's enters through a 1x1 convolution, ``guide_projection``, which is not
    of the paper.

    Layers and initial values are those of the published code (github.com/poppinace/fade). 47,514
    parameters at 256 channels; published are 0.29M for the six of SegFormer-B1.

    Softmax and sums are in float32 at least.

    Args:
        in_channels: C.
        scale_factor, guide_channels: see :class:`GuidedUpsampler`.
        compressed_channels: channels of what the weights are predicted from.
        kernel_size: odd; windows are of kernel_size x kernel_size input pixels.
        encoder_kernel_size: odd; kernel of the semi-shift convolution.
        gating: whether there is a gate; without it the output is the weighted windows alone.

    Raises:
        InputError: values that do not fit.
    """

    config_node = "FADE"

    def __init__(
        self,
        in_channels: int,
        scale_factor: float = 2,
        compressed_channels: int = 64,
        kernel_size: int = 5,
        encoder_kernel_size: int = 3,
        gating: bool = True,
        *,
        guide_channels: int | None = None,
    ) -> None:
        super().__init__(in_channels, scale_factor, guide_channels=guide_channels)
        check_positive(compressed_channels=compressed_channels)
        check_odd(kernel_size=kernel_size, encoder_kernel_size=encoder_kernel_size)
        self.guide_compressor = nn.Conv2d(self.guide_channels, compressed_channels, 1)
        self.input_compressor = nn.Conv2d(in_channels, compressed_channels, 1, bias=False)
        self.content_encoder = nn.Conv2d(
            compressed_channels,
            kernel_size**2,
            encoder_kernel_size,
            padding=encoder_kernel_size // 2,
        )
        self.gate = nn.Conv2d(in_channels, 1, 1) if gating else None
        self.guide_projection = (
            nn.Conv2d(self.guide_channels, in_channels, 1)
            if gating and self.guide_channels != in_channels
            else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values."""
        for module in self.children():
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """(N, C, H, W) and (N, G, H', W') to (N, C, H', W')."""
        size = self.guide_size(x, guide)
        logits = self.content_encoder(self.guide_compressor(guide))
        logits = logits + F.interpolate(self.content_encoder(self.input_compressor(x)), size)
        weights = logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))
        y = reassemble(x, weights[:, None])
        if self.gate is None:
            return y
        gate = F.interpolate(self.gate(x).sigmoid(), size)
        if self.guide_projection is not None:
            guide = self.guide_projection(guide)
        return torch.lerp(y, guide.to(y.dtype), gate.to(y.dtype))
