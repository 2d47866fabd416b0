"""LDA-AQU whose queries see the high-resolution map."""

from typing import Any

from torch import Tensor, nn

from ..errors import InputError
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

    Args:
        in_channels: C.
        scale_factor, guide_channels: see :class:`GuidedUpsampler`.
        options: those of :class:`LDAAQU`.

    Raises:
        InputError: values that do not fit one another; also ``init="bilinear"`` where the guide has
            fewer channels than a query.
    """

    def __init__(
        self,
        in_channels: int,
        scale_factor: float = 2,
        *,
        guide_channels: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, scale_factor, **options)
        self._set_guide_channels(guide_channels)
        query_channels = self.proj_q.out_channels
        if self.init == "bilinear" and self.guide_channels < query_channels:
            raise InputError(
                f"init 'bilinear': guide_channels must be at least in_channels / reduction, "
                f"{query_channels}, got {self.guide_channels}"
            )
        self.guide_norm = ChannelLayerNorm(self.guide_channels)
        self.proj_q = nn.Conv2d(self.guide_channels, query_channels, 1, bias=False)
        self._reset_attention(self.guide_norm)

    def reset_parameters(self) -> None:
        """Set the initial values."""
        self._reset_attention(self.guide_norm)
        self.conv_offset.reset_parameters()

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """(N, C, H, W) and (N, G, H', W') to (N, C, H', W')."""
        return self._attend(x, *self._query_key_offsets(x, guide))

    def sampling(self, x: Tensor, guide: Tensor) -> Sampling:
        """The positions and weights with which :meth:`forward` upsamples (N, C, H, W)."""
        return self._sampling(*self._query_key_offsets(x, guide))

    def _query_key_offsets(self, x: Tensor, guide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, C, H, W) and (N, G, H', W') to those of :class:`LAU`, the query from the guide."""
        self.guide_size(x, guide)
        (query,) = self._project(guide, guide_norm=self.guide_norm, proj_q=self.proj_q)
        (key,) = self._project(x, layer_norm=self.layer_norm, proj_k=self.proj_k)
        offsets, query = self._find_offsets(query, None)
        return query, key, offsets
