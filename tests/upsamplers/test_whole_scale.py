import pytest
import torch
from lda_aqu import build_upsampler
from lda_aqu.errors import InputError
from lda_aqu.upsamplers.whole_scale import pixel_shuffle
from randomized import randomized
from torch.nn import functional as F

NAMES = ["CARAFE", "DLU", "Deconv", "DySample", "PixelShuffle"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale, size", [(2, (6, 8)), (2, (5, 7)), (2, (6, 7)), (4, (9, 13))])
def test_a_size_short_of_a_multiple_is_cropped(name, scale, size):
    module = randomized(name, 8, scale)
    x = torch.randn(1, 8, 3, 4)
    y = module(x, output_size=size)
    assert torch.equal(y, module(x)[:, :, : size[0], : size[1]])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(7, 9), (4, 8), (6, 9), (1, 1), (20, 3)])
def test_any_other_size_is_interpolated(name, size):
    module = randomized(name, 8)
    x = torch.randn(1, 8, 3, 4)
    expected = F.interpolate(module(x), size=size, mode="bilinear", align_corners=False)
    assert torch.equal(module(x, output_size=size), expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_scale_factor_is_whole(name):
    with pytest.raises(InputError, match=rf"{name} needs a whole scale_factor, got 1\.5"):
        build_upsampler(name, 8, 1.5)
    assert build_upsampler(name, 8, 4.0)(torch.zeros(1, 8, 2, 3)).shape == (1, 8, 8, 12)


@pytest.mark.parametrize("n", [0, 2])
def test_pixel_shuffle(n):
    x = torch.randn(n, 18, 2, 5, requires_grad=True)
    y = pixel_shuffle(x, 3)
    assert torch.equal(y, F.pixel_shuffle(x, 3))
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
