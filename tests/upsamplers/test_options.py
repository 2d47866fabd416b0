"""Values that an option cannot have are refused when the upsampler is built, by name."""

import math

import pytest
from detectron2.config import get_cfg
from lda_aqu import UPSAMPLER_REGISTRY, add_lda_aqu_config, build_upsampler
from lda_aqu.config import build_upsampler_from_config
from lda_aqu.errors import InputError
from lda_aqu.upsamplers import upsampler_options

pytestmark = pytest.mark.cpu

CHANNELS = 32

WRONG_TYPES = {
    bool: (1, "yes", None),
    int: ("3", 2.5, True, None, [3]),
    float: ("3", True, None, [3.0]),
    str: (3, True, None, ["x"]),
}
OUT_OF_RANGE = {
    "A2U.encoder_kernel_size": (1, 0, -2),
    "backend": ("", "cuda"),
    "compressed_channels": (0, -1),
    "dynamic_scope": (),
    "embedding_dim": (0, -1),
    "encoder_kernel_size": (2, 0, -1),
    "gating": (),
    "high_pass_kernel_size": (2, 0, -1),
    "init": ("", "Window"),
    "kernel_size": (2, 0, -1),
    "low_pass_kernel_size": (4, 0, -1),
    "norm_groups": (5, 64, 0, -1),
    "num_groups": (5, 64, 0, -1),
    "num_heads": (5, 64, 0, -1),
    "offset_kernel_size": (2, 0, -1),
    "offset_range": (-0.5, math.nan, math.inf),
    "overlap": (-1,),
    "position_bias": (),
    "reduction": (5, 64, 0, -1),
    "style": ("", "LP"),
}
WHAT_IS_ALLOWED = "must be|allowed are|is not a multiple of|known:"


def bad_values() -> list[tuple[str, str, object]]:
    return [
        (name, option, value)
        for name in UPSAMPLER_REGISTRY
        for option, default in upsampler_options(UPSAMPLER_REGISTRY.get(name)).items()
        for value in (
            *WRONG_TYPES[type(default)],
            *OUT_OF_RANGE.get(f"{name}.{option}", OUT_OF_RANGE[option]),
        )
    ]


@pytest.mark.parametrize("name, option, value", bad_values())
def test_bad_values(name, option, value):
    with pytest.raises(InputError, match=option) as caught:
        build_upsampler(name, CHANNELS, **{option: value})
    caught.match(WHAT_IS_ALLOWED)

    cfg = get_cfg()
    add_lda_aqu_config(cfg)
    node = UPSAMPLER_REGISTRY.get(name).config_node
    cfg.MODEL.FPN.UPSAMPLER, cfg.MODEL[node][option.upper()] = name, value
    with pytest.raises(InputError) as in_config:
        build_upsampler_from_config(
            cfg, "MODEL.FPN.UPSAMPLER", CHANNELS, "MODEL.FPN.OUT_CHANNELS", has_guide=True
        )
    in_config.match(rf"^MODEL\.FPN\.UPSAMPLER '{name}' .*MODEL\.{node}\.")
    assert str(in_config.value).endswith(str(caught.value))
