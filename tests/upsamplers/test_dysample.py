import itertools
from functools import partial

import numpy as np
import oracle
import pytest
import torch
from lda_aqu import build_upsampler
from lda_aqu.errors import InputError
from randomized import assert_matches, randomized
from torch import nn
from torch.nn import functional as F

FORMS = list(itertools.product(("lp", "pl"), (False, True)))


def loops(x: np.ndarray, state: dict, scale: int, style: str, groups: int) -> np.ndarray:
    """The paper's equations for one image (C, H, W), one output pixel at a time."""
    c, h, w = x.shape
    shuffled = np.zeros((c // scale**2, h * scale, w * scale))
    if style == "pl":
        for k, i, j in itertools.product(*map(range, shuffled.shape)):
            shuffled[k, i, j] = x[
                k * scale**2 + i % scale * scale + j % scale, i // scale, j // scale
            ]
    source = shuffled if style == "pl" else x
    raw = oracle.convolve(source, state["offset.weight"]) + state["offset.bias"][:, None, None]
    if "scope.weight" in state:
        raw *= 0.5 / (1 + np.exp(-oracle.convolve(source, state["scope.weight"])))
    else:
        raw *= 0.25
    output = np.zeros((c, h * scale, w * scale))
    for i, j, g in itertools.product(range(h * scale), range(w * scale), range(groups)):

        def offset(axis: int, i: int = i, j: int = j, g: int = g) -> float:
            channel = axis * groups + g
            if style == "pl":
                return raw[channel, i, j]
            channel = channel * scale**2 + i % scale * scale + j % scale
            return raw[channel, i // scale, j // scale]

        # Half a pixel's step from a pixel's centre to the centres of the s x s that it becomes.
        column = j // scale + (j % scale - (scale - 1) / 2) / scale + offset(0)
        row = i // scale + (i % scale - (scale - 1) / 2) / scale + offset(1)
        part = slice(g * c // groups, (g + 1) * c // groups)
        output[part, i, j] = oracle.bilinear_at(
            x[part], np.clip(row, 0, h - 1), np.clip(column, 0, w - 1)
        )
    return output


@pytest.mark.parametrize("style, dynamic", FORMS)
@pytest.mark.parametrize(
    "scale, groups, size", [(2, 4, (4, 6)), (2, 2, (1, 1)), (4, 1, (3, 2)), (3, 3, (2, 4))]
)
def test_matches_the_loops(style, dynamic, scale, groups, size):
    channels = {2: 8, 4: 16, 3: 9}[scale]
    options = {"style": style, "num_groups": groups, "dynamic_scope": dynamic}
    module = randomized("DySample", channels, scale, std=1.0, **options).double()
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    assert_matches(module, partial(loops, scale=scale, style=style, groups=groups), x)


@pytest.mark.parametrize("style, dynamic", FORMS)
def test_starts_as_bilinear_upsampling(style, dynamic):
    module = build_upsampler("DySample", 16, style=style, dynamic_scope=dynamic)
    x = torch.randn(1, 16, 7, 5)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(module(x), expected, atol=0.02, rtol=0)
    assert module.offset.weight.std().item() == pytest.approx(0.001, rel=0.4)
    assert not module.offset.bias.any()
    assert not dynamic or not module.scope.weight.any()


@pytest.mark.parametrize(
    "style, dynamic, count",
    [("lp", False, 8_224), ("lp", True, 16_416), ("pl", False, 520), ("pl", True, 1_032)],
)
def test_published_parameters(style, dynamic, count):
    """Of tiny-smart/dysample, the implementation of Liu et al., ICCV 2023: 1x1 convolutions from
    C or C / 4 channels to 2 * 4 * 4 or 2 * 4, that of the scope without bias."""
    module = build_upsampler("DySample", 256, style=style, dynamic_scope=dynamic)
    assert sum(p.numel() for p in module.parameters()) == count
    names = ["offset.weight", "offset.bias"] + ["scope.weight"] * dynamic
    assert list(module.state_dict()) == names


@pytest.mark.parametrize("style, dynamic", FORMS)
def test_published_states_are_loaded_strictly(style, dynamic):
    """With their ``init_pos``, also as a part of a network; with no other key that is not here."""
    options = {"style": style, "dynamic_scope": dynamic}
    module = nn.Sequential(randomized("DySample", 16, **options))
    state = module.state_dict()
    published = {**state, "0.init_pos": torch.zeros(1, 2 * 4 * 4, 1, 1)}
    loaded = nn.Sequential(build_upsampler("DySample", 16, **options))
    loaded.load_state_dict(published)
    x = torch.randn(1, 16, 3, 4)
    assert torch.equal(loaded(x), module(x))
    assert "0.init_pos" in published and list(loaded.state_dict()) == list(state)
    for key in ("init_pos", "0.scope.bias"):
        with pytest.raises(RuntimeError, match=f"Unexpected key.*{key}"):
            loaded.load_state_dict({**state, key: torch.zeros(32)})


def test_positions_are_in_float32_in_half_precision():
    """In bfloat16, positions on a wide map would be whole pixels apart."""
    ramp = torch.arange(512.0).bfloat16().expand(1, 4, 2, 512) / 512
    y = build_upsampler("DySample", 4).bfloat16()(ramp)
    expected = F.interpolate(ramp.float(), scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(y.float(), expected, atol=0.004, rtol=0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"style": "lpl"}, "style 'lpl': allowed are lp, pl"),
        ({"num_groups": 3}, r"in_channels \(10\) is not a multiple of num_groups \(3\)"),
        ({"num_groups": 0}, r"num_groups \(0\)"),
        (
            {"style": "pl", "num_groups": 2},
            r"in_channels \(10\) is not a multiple of scale_factor² \(4\)",
        ),
    ],
)
def test_values_that_do_not_fit_raise(options, message):
    with pytest.raises(InputError, match=message):
        build_upsampler("DySample", 10, **options)
