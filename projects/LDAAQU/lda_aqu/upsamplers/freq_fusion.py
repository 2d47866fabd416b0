"""FreqFusion: frequency-aware feature fusion."""

import torch
from torch import Tensor, nn

from ..ops import reassemble, sample_bilinear, similarity
from .base import GuidedUpsampler, check_odd, check_positive, divide
from .registry import UPSAMPLER_REGISTRY

NEIGHBOURS = 8
"""Pixels around one, with which it is compared."""


@UPSAMPLER_REGISTRY.register()
class FreqFusion(GuidedUpsampler):
    """The input smoothed and resampled, plus the detail of the guide: low and high frequencies.

    Chen et al., "Frequency-aware Feature Fusion for Dense Image Prediction", TPAMI 2024. Written
    after what is publicly said of the method, without its code, and not compared with the text of
    the paper. Of an input Y and a guide X it predicts, from a fused map Z, three things for each
    guide pixel:

    - adaptive low-pass filter: a softmax over a window, by which Y is weighted and upsampled;
    - offsets, direction times magnitude, of what Z shows and of its cosine similarity with the 8
      pixels around: where the upsampled map is read anew, bilinearly, each group of channels at
      its own position;
    - adaptive high-pass filter: the identity less a softmax over a window, which gives the detail
      of X.

    The paper's fused map is up(Y) + X + detail(X). This returns up(Y) + detail(X): a caller that
    adds the guide to it, as a feature pyramid does, has the paper's; with a caller that does not,
    the detail alone is what the output has of the guide. A guide of other channels than the input's
    gives its detail through a 1x1 convolution, ``guide_projection``, which is not of the paper.

    Z is the same sum of X and Y compressed by 1 x 1 convolutions, with filters predicted from the
    compressed X alone. What is this project's own choice: the generators of filters are the same
    both times; what filters and similarities see is zero beyond the border, and the upsampled map
    is constant there; 1e-6 is added to the squared lengths that the cosine divides by, so that
    gradients stay finite; filters start as means of windows, as CARAFE's do, and offsets at hardly
    any, as DySample's do.

    62,898 parameters at 256 channels, 0.19 M for the three of Panoptic FPN, where 0.3 M are
    published: something differs. Offsets predicted for each input pixel, four at a time as in
    DySample, would make it 0.28 M, and ask for a whole factor; here the guide may have any size.

    Softmax, similarity, positions and sums are in float32 at least.

    Args:
        in_channels: C, a multiple of ``num_groups``.
        scale_factor, guide_channels: see :class:`GuidedUpsampler`.
        compressed_channels: channels of Z.
        low_pass_kernel_size: odd; windows of the low-pass filters, in input pixels.
        high_pass_kernel_size: odd; windows of the high-pass filters, in guide pixels.
        num_groups: groups of channels with offsets of their own.

    Raises:
        InputError: values that do not fit.
    """

    config_node = "FREQ_FUSION"

    def __init__(
        self,
        in_channels: int,
        scale_factor: float = 2,
        compressed_channels: int = 64,
        low_pass_kernel_size: int = 5,
        high_pass_kernel_size: int = 3,
        num_groups: int = 4,
        *,
        guide_channels: int | None = None,
    ) -> None:
        super().__init__(in_channels, scale_factor, guide_channels=guide_channels)
        check_positive(compressed_channels=compressed_channels)
        check_odd(
            low_pass_kernel_size=low_pass_kernel_size, high_pass_kernel_size=high_pass_kernel_size
        )
        divide("in_channels", in_channels, "num_groups", num_groups)
        self.num_groups = num_groups
        self.guide_compressor = nn.Conv2d(self.guide_channels, compressed_channels, 1)
        self.input_compressor = nn.Conv2d(in_channels, compressed_channels, 1)
        self.low_pass, self.high_pass = (
            nn.Conv2d(compressed_channels, size**2, 3, padding=1)
            for size in (low_pass_kernel_size, high_pass_kernel_size)
        )
        self.direction, self.magnitude = (
            nn.Conv2d(compressed_channels + NEIGHBOURS, 2 * num_groups, 3, padding=1)
            for _ in range(2)
        )
        self.guide_projection = (
            nn.Conv2d(self.guide_channels, in_channels, 1)
            if self.guide_channels != in_channels
            else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values."""
        for convolution in self.children():
            nn.init.normal_(convolution.weight, std=0.001)
            nn.init.zeros_(convolution.bias)
        for layer in (self.guide_compressor, self.input_compressor, self.guide_projection):
            if layer is not None:
                nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """(N, C, H, W) and (N, G, H', W') to (N, C, H', W')."""
        self.guide_size(x, guide)
        coarse, fine = self.input_compressor(x), self.guide_compressor(guide)
        smooth, detail = self._filter(coarse, fine, fine)
        fused = smooth + fine + detail
        if self.guide_projection is not None:
            guide = self.guide_projection(guide)
        smooth, detail = self._filter(x, guide, fused)
        return sample_bilinear(smooth, self._positions(fused)) + detail.to(x.dtype)

    def _filter(self, x: Tensor, guide: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """The low frequencies of the input, upsampled, and the high ones of the guide."""
        low, high = (
            logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))[:, None]
            for logits in (self.low_pass(features), self.high_pass(features))
        )
        return reassemble(x, low), guide - reassemble(guide, high)

    def _positions(self, fused: Tensor) -> Tensor:
        """Where each pixel of each group is read: (N, g, 2, H', W'), (y, x) in guide pixels."""
        normalized = fused.to(torch.promote_types(fused.dtype, torch.float32))
        normalized = normalized * (normalized.square().sum(1, keepdim=True) + 1e-6).rsqrt()
        alike = similarity(normalized, normalized, 3).to(fused.dtype)
        middle = NEIGHBOURS // 2
        features = torch.cat((fused, alike[:, :middle], alike[:, middle + 1 :]), 1)
        direction, magnitude = self.direction(features), self.magnitude(features)
        dtype = torch.promote_types(direction.dtype, torch.float32)  # half has no room for them
        offsets = direction.to(dtype) * magnitude.to(dtype).sigmoid()
        rows, columns = (
            torch.arange(size, dtype=dtype, device=fused.device) for size in fused.shape[2:]
        )
        offsets = offsets.unflatten(1, (self.num_groups, 2))
        return torch.stack((offsets[:, :, 0] + rows[:, None], offsets[:, :, 1] + columns), 2)
