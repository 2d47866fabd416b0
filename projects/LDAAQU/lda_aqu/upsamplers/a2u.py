"""A2U: affinity-aware upsampling."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..ops import reassemble
from .adaptive_pooling import AdaptiveAvgPool2d
from .base import GuidedUpsampler, check_odd, divide, upper_left
from .registry import UPSAMPLER_REGISTRY


@UPSAMPLER_REGISTRY.register()
class A2U(GuidedUpsampler):
    """Windows of the input weighted by second-order features of the guide.

    Dai et al., "Learning Affinity-Aware Upsampling for Deep Image Matting", CVPR 2021. Two kernels
    made of the guide's averages move over the guide in steps of 2, the same over all its channels;
    the inner product of what they give is the affinity, one value for each 2 x 2 guide pixels. A
    vector made of the guide's global average turns it into the weights of four windows.

    The hybrid, rank-1 form of the published code (github.com/dongdong93/a2u_matting) and its
    settings, the initial values PyTorch's own, as there. Of its two outputs, weights for
    downsampling and for upsampling, this has the second, as in the comparisons with other
    upsamplers (github.com/tiny-smart/detection-with-upsamplers). 10,790 parameters at 256 channels;
    published are 0.03M for the three of Faster R-CNN's FPN and 0.06M for the six of SegFormer-B1
    (SAPA); FADE's 0.12M of the latter include the layer for downsampling, 9,252 each.

    The kernels see zeros beyond the guide, also where its size is odd. Affinity, softmax and sums
    are in float32 at least.

    Args:
        in_channels: C.
        scale_factor: see :class:`GuidedUpsampler`.
        kernel_size: odd; windows are of kernel_size x kernel_size input pixels.
        encoder_kernel_size: size of the kernels that move over the guide, at least 2.
        norm_groups: groups of the group normalisation of what they give.
        guide_channels: G, a multiple of ``norm_groups``; C where it is not given.

    Raises:
        InputError: values that do not fit.
    """

    config_node = "A2U"

    def __init__(
        self,
        in_channels: int,
        scale_factor: float = 2,
        kernel_size: int = 3,
        encoder_kernel_size: int = 6,
        norm_groups: int = 32,
        *,
        guide_channels: int | None = None,
    ) -> None:
        super().__init__(in_channels, scale_factor, guide_channels=guide_channels)
        guide_channels = self.guide_channels
        check_odd(kernel_size=kernel_size)
        if encoder_kernel_size < 2:
            raise InputError(f"encoder_kernel_size must be at least 2, got {encoder_kernel_size}")
        divide("guide_channels", guide_channels, "norm_groups", norm_groups)
        self.encoder_kernel_size = encoder_kernel_size
        self.kernels = nn.Sequential(
            AdaptiveAvgPool2d(encoder_kernel_size), nn.Conv2d(guide_channels, 2, 1)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(norm_groups, guide_channels) for _ in range(2))
        self.projection = nn.Sequential(
            AdaptiveAvgPool2d(1), nn.Conv2d(guide_channels, 4 * kernel_size**2, 1)
        )

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """(N, C, H, W) and (N, G, H', W') to (N, C, H', W')."""
        height, width = self.guide_size(x, guide)
        if len(x) == 0:  # which grouped convolutions do not take
            return F.interpolate(x, (height, width))
        logits = F.pixel_shuffle(self.projection(guide) * self._affinity(guide), 2)
        weights = upper_left(logits, height, width).sigmoid().softmax(1)
        return reassemble(x, weights[:, None])

    def _affinity(self, guide: Tensor) -> Tensor:
        """(N, G, H', W') to (N, 1, H' / 2, W' / 2), rounded up."""
        kernels = self.kernels(guide)  # (N, 2, k, k)
        # Zeros that an even kernel reads where a side is odd. Added to any, they are right in
        # exports, too.
        end = 1 - self.encoder_kernel_size % 2
        # Channels are the batch and images the groups: an image's own kernels, for all channels. It
        # is by len that exporters see a number, which groups must be.
        features = F.conv2d(
            F.pad(guide, (0, end, 0, end)).transpose(0, 1),
            kernels.flatten(0, 1)[:, None],
            stride=2,
            padding=(self.encoder_kernel_size - 1) // 2,
            groups=len(guide),
        )
        features = features.unflatten(1, (len(guide), 2)).permute(2, 1, 0, 3, 4)
        u, v = (F.leaky_relu(norm(f)) for norm, f in zip(self.norms, features, strict=True))
        dtype = torch.promote_types(u.dtype, torch.float32)
        return (u * v).sum(1, keepdim=True, dtype=dtype) / self.guide_channels**0.5
