"""IndexNet: upsampling by learned indices."""

from torch import Tensor, nn
from torch.nn import functional as F

from .base import GuidedUpsampler, upper_left
from .registry import UPSAMPLER_REGISTRY


@UPSAMPLER_REGISTRY.register()
class IndexNet(GuidedUpsampler):
    """The nearest input pixel, scaled by an index between 0 and 1 that the guide predicts.

    Lu et al., "Indices Matter: Learning to Index for Deep Image Matting", ICCV 2019, in its form
    with holistic indices (the same for all channels), nonlinearity and context: a 4 x 4 convolution
    of stride 2, batch normalisation and a 1 x 1 convolution give four indices for each 2 x 2 guide
    pixels. Of the paper's forms it is the one with the counts of the comparisons with other
    upsamplers: 2,100,224 parameters at 256 channels, published as 6.30M for the three of Faster
    R-CNN's FPN and 12.60M for the six of SegFormer-B1 (SAPA, NeurIPS 2022), and 30.65G
    multiplications in the latter. (A training log of SegFormer-B1 at github.com/poppinace/fade
    lists another form, of 1,048,576 parameters, which has neither of these counts.)

    Layers are those of the published code (github.com/poppinace/indexnet_matting), initial values
    PyTorch's. The convolution sees zeros beyond the guide, also where its size is odd. Batch
    normalisation cannot train on a single position: one image whose guide has at most 2 x 2 pixels.

    Args:
        in_channels: C.
        scale_factor, guide_channels: see :class:`GuidedUpsampler`.
    """

    def __init__(
        self, in_channels: int, scale_factor: float = 2, *, guide_channels: int | None = None
    ) -> None:
        super().__init__(in_channels, scale_factor, guide_channels=guide_channels)
        channels = self.guide_channels
        self.index_block = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU6(inplace=True),
            nn.Conv2d(2 * channels, 4, 1, bias=False),
        )

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """(N, C, H, W) and (N, G, H', W') to (N, C, H', W')."""
        height, width = self.guide_size(x, guide)
        if x.shape[0] == 0:  # for which pixel_shuffle has no gradient
            return F.interpolate(x, (height, width))
        # The zeros are read where a side is odd. Added to any, they are right in exports, too.
        padded = F.pad(guide, (0, 1, 0, 1))
        indices = F.pixel_shuffle(self.index_block(padded).sigmoid(), 2)
        indices = upper_left(indices, height, width).to(x.dtype)
        return F.interpolate(x, (height, width)) * indices
