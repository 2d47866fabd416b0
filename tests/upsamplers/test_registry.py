import re

import pytest
import torch
from detectron2.config import get_cfg
from lda_aqu import LDAAQU, UPSAMPLER_REGISTRY, add_lda_aqu_config, build_upsampler
from lda_aqu.config import build_upsampler_from_config
from lda_aqu.errors import InputError
from lda_aqu.upsamplers import Upsampler, upsampler_options
from torch.nn import functional as F


@pytest.mark.parametrize("name", list(UPSAMPLER_REGISTRY))
def test_every_option_has_a_default_and_every_optioned_class_a_config_node(name):
    cls = UPSAMPLER_REGISTRY.get(name)
    options = upsampler_options(cls)
    assert all(default is not None for default in options.values())
    assert bool(options) == bool(cls.config_node)


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


class Aligned(Upsampler):
    """One of a user's own, with an option that is None by default."""

    config_node = "ALIGNED"

    def __init__(self, in_channels: int, scale_factor: float = 2, align: bool | None = None):
        super().__init__(in_channels, scale_factor)
        self.align = align


@pytest.mark.parametrize("value", [True, None, 2, "corners"])
def test_an_option_that_is_none_by_default_is_the_constructors_to_check(monkeypatch, value):
    monkeypatch.setitem(UPSAMPLER_REGISTRY._classes, "Aligned", Aligned)
    assert build_upsampler("Aligned", 16, align=value).align is value


def test_registered_after_the_keys_were_added(monkeypatch):
    cfg = get_cfg()
    add_lda_aqu_config(cfg)
    monkeypatch.setitem(UPSAMPLER_REGISTRY._classes, "Aligned", Aligned)
    cfg.MODEL.FPN.UPSAMPLER = "Aligned"
    given = (cfg, "MODEL.FPN.UPSAMPLER", 16, "MODEL.FPN.OUT_CHANNELS")
    message = r"MODEL\.FPN\.UPSAMPLER 'Aligned'.*registered after add_lda_aqu_config.*: register it"
    with pytest.raises(InputError, match=message):
        build_upsampler_from_config(*given)
    monkeypatch.setattr(Aligned, "config_node", "")  # without keys, it has its defaults
    assert build_upsampler_from_config(*given).align is None


def test_print_shows_the_options():
    assert repr(Aligned(16, 4, align=True)) == "Aligned(in_channels=16, scale_factor=4, align=True)"
    shown = repr(LDAAQU(16, num_heads=2, num_groups=1, offset_range=4.0, backend="plain"))
    assert "scale_factor=2, num_heads=2, init='window', backend='plain'" in shown
    assert "num_groups=1, offset_range=4.0" in shown
