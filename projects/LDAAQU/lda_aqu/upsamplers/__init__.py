"""The upsamplers, one file each, behind one registry. They need torch alone."""

import importlib
import pkgutil

from .base import GuidedUpsampler, Upsampler, upsample_to, upsampler_options
from .registry import UPSAMPLER_REGISTRY, build_upsampler

# Importing a module registers its upsampler, so that adding one is adding a file.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

from .lau import LAU, Sampling  # noqa: E402
from .lda_aqu import LDAAQU  # noqa: E402
from .replacement import replace_upsampling  # noqa: E402

__all__ = [
    "LAU",
    "LDAAQU",
    "UPSAMPLER_REGISTRY",
    "GuidedUpsampler",
    "Sampling",
    "Upsampler",
    "build_upsampler",
    "replace_upsampling",
    "upsample_to",
    "upsampler_options",
]
