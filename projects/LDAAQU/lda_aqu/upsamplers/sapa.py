"""SAPA: similarity-aware point affiliation."""

from torch import Tensor, nn

from ..ops import reassemble, similarity
from .base import GuidedUpsampler, check_odd, check_positive
from .channel_layer_norm import ChannelLayerNorm
from .registry import UPSAMPLER_REGISTRY


@UPSAMPLER_REGISTRY.register()
class SAPAB(GuidedUpsampler):
    """SAPA-B: each guide pixel gathers the input pixels around it that are similar to it.

    Lu et al., "SAPA: Similarity-Aware Point Affiliation for Feature Upsampling", NeurIPS 2022, with
    its bilinear similarity: inner products of normalised guide and input pixels in a space of few
    dimensions, whose softmax over the window weighs the input pixels. Positions of a window beyond
    the map have similarity 0 and value 0, as in the published operator.

    Layers and initial values are those of the published code (github.com/poppinace/sapa), but for
    the dimensions: 64 there by default, 32 in its authors' later code (github.com/tiny-smart/sapa),
    and 32 in the published counts. 17,472 parameters at 256 channels; published are 0.05M for the
    three of Faster R-CNN's FPN and 0.1M for the six of SegFormer-B1.

    Softmax and sums are in float32 at least.

    Args:
        in_channels: C.
        scale_factor, guide_channels: see :class:`GuidedUpsampler`.
        embedding_dim: dimensions in which pixels are compared.
        kernel_size: odd; windows are of kernel_size x kernel_size input pixels.

    Raises:
        InputError: values that do not fit.
    """

    config_node = "SAPAB"

    def __init__(
        self,
        in_channels: int,
        scale_factor: float = 2,
        embedding_dim: int = 32,
        kernel_size: int = 5,
        *,
        guide_channels: int | None = None,
    ) -> None:
        super().__init__(in_channels, scale_factor, guide_channels=guide_channels)
        check_positive(embedding_dim=embedding_dim)
        check_odd(kernel_size=kernel_size)
        self.kernel_size = kernel_size
        self.guide_norm = ChannelLayerNorm(self.guide_channels)
        self.input_norm = ChannelLayerNorm(in_channels)
        self.query = nn.Conv2d(self.guide_channels, embedding_dim, 1)
        self.key = nn.Conv2d(in_channels, embedding_dim, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values."""
        for convolution in (self.query, self.key):
            nn.init.trunc_normal_(convolution.weight, std=0.02)
            nn.init.zeros_(convolution.bias)
        for layer in (self.guide_norm, self.input_norm):
            layer.norm.reset_parameters()

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """(N, C, H, W) and (N, G, H', W') to (N, C, H', W')."""
        self.guide_size(x, guide)
        query = self.query(self.guide_norm(guide))
        key = self.key(self.input_norm(x))
        weights = similarity(key, query, self.kernel_size).softmax(1)
        return reassemble(x, weights[:, None])
