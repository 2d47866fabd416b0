"""Modules whose every parameter matters."""

from lda_aqu import build_upsampler
from lda_aqu.upsamplers import Upsampler
from torch import nn


def randomized(name: str, *args: object, std: float = 0.3, **options: object) -> Upsampler:
    """An upsampler with random parameters, as some start at zero."""
    module = build_upsampler(name, *args, **options)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module
