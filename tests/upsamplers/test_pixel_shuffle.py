import itertools

import oracle
import pytest
import torch
from lda_aqu import build_upsampler
from lda_aqu.errors import InputError
from randomized import randomized


@pytest.mark.parametrize("scale, kernel_size", [(2, 3), (3, 1), (4, 5), (1, 3)])
def test_matches_the_loops(scale, kernel_size):
    module = randomized("PixelShuffle", 3, scale, kernel_size=kernel_size).double()
    x = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    weight, bias = (p.numpy(force=True) for p in module.parameters())
    channels = oracle.convolve(x[0].numpy(force=True), weight) + bias[:, None, None]
    expected = torch.zeros(1, 3, 4 * scale, 5 * scale, dtype=torch.float64)
    for c, i, j in itertools.product(*map(range, expected.shape[1:])):
        channel = c * scale**2 + i % scale * scale + j % scale
        expected[0, c, i, j] = channels[channel, i // scale, j // scale]
    torch.testing.assert_close(module(x).detach(), expected)


def test_published_parameters():
    """2.4M at 256 channels in the comparison of CARAFE (Wang et al., ICCV 2019)."""
    module = build_upsampler("PixelShuffle", 256)
    assert sum(p.numel() for p in module.parameters()) == 1024 * (3 * 3 * 256 + 1) == 2_360_320


def test_published_names():
    """Of open-mmlab/mmcv's PixelShufflePack."""
    assert list(build_upsampler("PixelShuffle", 8).state_dict()) == [
        "upsample_conv.weight",
        "upsample_conv.bias",
    ]


def test_initial_values():
    module = build_upsampler("PixelShuffle", 64).upsample_conv
    bound = (6 / ((64 + 256) * 9)) ** 0.5  # Xavier uniform
    assert 0.95 * bound < module.weight.abs().max() <= bound
    assert not module.bias.any()


@pytest.mark.parametrize("size", [2, 0, -1])
def test_values_that_do_not_fit_raise(size):
    with pytest.raises(InputError, match=f"kernel_size must be odd and positive, got {size}"):
        build_upsampler("PixelShuffle", 4, kernel_size=size)
