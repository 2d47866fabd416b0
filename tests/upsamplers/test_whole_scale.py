import pytest
import torch
from lda_aqu import UPSAMPLER_REGISTRY, build_upsampler
from lda_aqu.errors import InputError
from lda_aqu.upsamplers import upsample_to
from lda_aqu.upsamplers.whole_scale import pixel_shuffle
from randomized import randomized
from torch import nn
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


class UpsampleTo(nn.Module):
    """An upsampler that is asked for the size of another map."""

    def __init__(self, upsampler: nn.Module) -> None:
        super().__init__()
        self.upsampler = upsampler

    def forward(self, x: torch.Tensor, lateral: torch.Tensor) -> torch.Tensor:
        return upsample_to(self.upsampler, x, lateral)


@pytest.mark.parametrize("name", UPSAMPLER_REGISTRY.unguided())
def test_traced_with_an_output_size_of_any_size(name):
    """Of a pyramid: the finer map is up to a row and a column short of twice the size."""
    torch.manual_seed(0)
    module = UpsampleTo(randomized(name, 32)).eval()
    traced = torch.jit.trace(module, (torch.randn(1, 32, 4, 5), torch.randn(1, 8, 8, 10)))
    for height, width in ((8, 10), (7, 9), (11, 6)):
        inputs = (
            torch.randn(1, 32, -(-height // 2), -(-width // 2)),
            torch.randn(1, 8, height, width),
        )
        torch.testing.assert_close(traced(*inputs), module(*inputs), rtol=1e-4, atol=1e-4)
