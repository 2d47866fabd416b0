"""FADE-Lite: FADE with a depthwise semi-shift convolution."""

from torch import nn

from .base import check_odd
from .fade import FADE
from .registry import UPSAMPLER_REGISTRY


@UPSAMPLER_REGISTRY.register()
class FADELite(FADE):
    """:class:`FADE` that compresses to a channel for each weight and convolves each on its own.

    Lu et al., "FADE: A Task-Agnostic Upsampling Operator for Encoder-Decoder Architectures", IJCV
    2024. Layers and initial values are those of the published code (github.com/poppinace/fade).
    13,332 parameters at 256 channels, 28 % of FADE's.

    Args:
        in_channels: C.
        scale_factor, guide_channels: see :class:`GuidedUpsampler`.
        kernel_size: odd; windows are of kernel_size x kernel_size input pixels.
        encoder_kernel_size: odd; kernel of the semi-shift convolution.
        gating: whether there is a gate; without it the output is the weighted windows alone.

    Raises:
        InputError: values that do not fit.
    """

    config_node = "FADE_LITE"

    def __init__(
        self,
        in_channels: int,
        scale_factor: float = 2,
        kernel_size: int = 5,
        encoder_kernel_size: int = 3,
        gating: bool = True,
        *,
        guide_channels: int | None = None,
    ) -> None:
        check_odd(kernel_size=kernel_size, encoder_kernel_size=encoder_kernel_size)
        num_points = kernel_size**2
        super().__init__(
            in_channels,
            scale_factor,
            num_points,
            kernel_size,
            encoder_kernel_size,
            gating,
            guide_channels=guide_channels,
        )
        self.content_encoder = nn.Conv2d(
            num_points,
            num_points,
            encoder_kernel_size,
            padding=encoder_kernel_size // 2,
            groups=num_points,
        )
        self.reset_parameters()
