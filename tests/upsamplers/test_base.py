import pytest
import torch
from lda_aqu.errors import InputError
from lda_aqu.upsamplers import GuidedUpsampler
from torch.nn import functional as F


class Blend(GuidedUpsampler):
    """The mean of the nearest pixel and the guide."""

    def forward(self, x, guide):
        return (F.interpolate(x, self.guide_size(x, guide)) + guide) / 2


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (1, 1)])
def test_the_guides_size_is_the_outputs(size):
    x, guide = torch.full((2, 4, 3, 4), 1.0), torch.full((2, 4, *size), 3.0)
    assert torch.equal(Blend(4)(x, guide), torch.full((2, 4, *size), 2.0))


@pytest.mark.parametrize(
    "x, guide, message",
    [
        ((2, 5, 3, 4), (2, 4, 6, 8), r"built for \(N, 4, H, W\), got \(2, 5, 3, 4\)"),
        ((2, 4, 3, 4), (2, 5, 6, 8), r"built for guides \(N, 4, H, W\), got \(2, 5, 6, 8\)"),
        ((2, 4, 3, 4), (4, 6, 8), r"built for guides \(N, 4, H, W\), got \(4, 6, 8\)"),
        ((2, 4, 3, 4), (1, 4, 6, 8), "x has a batch of 2, its guide of 1"),
    ],
)
def test_maps_that_do_not_fit_raise(x, guide, message):
    with pytest.raises(InputError, match=message):
        Blend(4)(torch.zeros(x), torch.zeros(guide))
