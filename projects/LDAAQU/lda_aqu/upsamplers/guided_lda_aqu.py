"""LDA-AQU whose queries see the high-resolution map."""

from typing import Any

from torch import Tensor

from .base import GuidedUpsampler
from .channel_layer_norm import ChannelLayerNorm
from .lau import Sampling
from .lda_aqu import LDAAQU
from .registry import UPSAMPLER_REGISTRY


@UPSAMPLER_REGISTRY.register()
class GuidedLDAAQU(LDAAQU, GuidedUpsampler):
    """LDA-AQU with the queries of the guide, in place of those of the input, resized.

    Not of the paper: what the guided methods (FADE, SAPA, FreqFusion) profit from, in
    :class:`LDAAQU`. The guide has a normalisation of its own, ``guide_norm``; the projection of the
    queries is applied to it. 39,922 parameters at 256 channels. Options are those of LDAAQU, and so
    are the config keys.
    """

    def __init__(self, in_channels: int, scale_factor: float = 2, **options: Any) -> None:
        super().__init__(in_channels, scale_factor, **options)
        self.guide_norm = ChannelLayerNorm(in_channels)
        self._move_shared_query()

    def reset_parameters(self) -> None:
        """Set the initial values."""
        super().reset_parameters()
        self.guide_norm.norm.reset_parameters()
        self._move_shared_query()

    def _move_shared_query(self) -> None:
        """Let the guide's normalisation give the queries what they have in common."""
        self.guide_norm.norm.bias.data.copy_(self.layer_norm.norm.bias.data)
        self.layer_norm.norm.bias.data.zero_()

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """(N, C, H, W) and (N, C, H', W') to (N, C, H', W')."""
        return self._attend(x, *self._query_key_offsets(x, guide))

    def sampling(self, x: Tensor, guide: Tensor) -> Sampling:
        """The positions and weights with which :meth:`forward` upsamples (N, C, H, W)."""
        return self._sampling(*self._query_key_offsets(x, guide))

    def _query_key_offsets(self, x: Tensor, guide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, C, H, W) and (N, C, H', W') to those of :class:`LAU`, the query from the guide."""
        self.guide_size(x, guide)
        (query,) = self._project(guide, guide_norm=self.guide_norm, proj_q=self.proj_q)
        (key,) = self._project(x, layer_norm=self.layer_norm, proj_k=self.proj_k)
        offsets, query = self._find_offsets(query, None)
        return query, key, offsets
