import re

import pytest
import torch
from lda_aqu import UPSAMPLER_REGISTRY, build_upsampler
from lda_aqu.errors import InputError
from lda_aqu.upsamplers import Upsampler
from torch.nn import functional as F


@pytest.mark.parametrize("name, mode", [("Nearest", "nearest"), ("Bilinear", "bilinear")])
def test_fixed_interpolations(name, mode):
    x = torch.randn(1, 4, 5, 3)
    expected = F.interpolate(x, scale_factor=2, mode=mode)
    assert torch.equal(build_upsampler(name, 4)(x), expected)


@pytest.mark.parametrize(
    "name, near",
    [
        ("carafe", "; did you mean CARAFE?"),
        ("Dysampel", "; did you mean DySample?"),
        ("LDA_AQU", "; did you mean LDAAQU?"),
        ("zzz", ""),
    ],
)
def test_unknown_name_suggests_and_lists(name, near):
    known = ", ".join(UPSAMPLER_REGISTRY)
    message = f"^unknown upsampler '{name}'{re.escape(near)}; known: {known}$"
    with pytest.raises(InputError, match=message):
        build_upsampler(name, 16)


def test_unknown_option_suggests_and_lists():
    with pytest.raises(InputError, match=r"'kernelsize'; did you mean kernel_size\?; .*reduction"):
        build_upsampler("LDAAQU", 16, kernelsize=3)
    with pytest.raises(InputError, match="it has: none"):
        build_upsampler("Nearest", 16, kernel_size=3)


def test_a_name_is_registered_once():
    with pytest.raises(InputError, match=r"'Nearest' is already .*lda_aqu\.upsamplers\.nearest"):
        UPSAMPLER_REGISTRY.register("Nearest")(Upsampler)
