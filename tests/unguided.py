"""The registered upsamplers that need no guide, also those yet to be added."""

import inspect

from lda_aqu import UPSAMPLER_REGISTRY

UNGUIDED = [
    name
    for name in UPSAMPLER_REGISTRY
    if "guide" not in inspect.signature(UPSAMPLER_REGISTRY.get(name).forward).parameters
]
