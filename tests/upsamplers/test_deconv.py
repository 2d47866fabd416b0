import numpy as np
import pytest
import torch
from lda_aqu import build_upsampler
from lda_aqu.errors import InputError
from randomized import randomized
from torch import nn


def loops(x, weight, bias, scale: int, overlap: int) -> np.ndarray:
    """Every input pixel paints its kernel; what is painted beyond the s-fold map is cut off."""
    n, _, h, w = x.shape
    size = scale + overlap
    canvas = np.zeros((n, weight.shape[1], (h - 1) * scale + size, (w - 1) * scale + size))
    for i in range(h):
        for j in range(w):
            patch = np.einsum("nc,cokl->nokl", x[:, :, i, j], weight)
            canvas[:, :, i * scale : i * scale + size, j * scale : j * scale + size] += patch
    start = (overlap + 1) // 2  # of an odd overlap, more is cut off at the start
    canvas = canvas[:, :, start : start + h * scale, start : start + w * scale]
    return canvas + bias[:, None, None]


@pytest.mark.parametrize("scale, overlap", [(2, 1), (2, 0), (2, 3), (4, 1), (3, 2), (1, 1)])
def test_matches_the_loops(scale, overlap):
    module = randomized("Deconv", 3, scale, overlap=overlap).double()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    weights = (p.numpy(force=True) for p in module.parameters())
    expected = loops(x.numpy(force=True), *weights, scale, overlap)
    assert expected.shape == (2, 3, 4 * scale, 5 * scale)
    torch.testing.assert_close(module(x).detach(), torch.as_tensor(expected))


def test_without_overlap_it_is_the_deconvolution_of_mask_rcnn():
    module = randomized("Deconv", 4, overlap=0)
    theirs = nn.ConvTranspose2d(4, 4, kernel_size=2, stride=2)
    theirs.load_state_dict(module.deconv.state_dict())
    x = torch.randn(1, 4, 7, 7)
    torch.testing.assert_close(module(x), theirs(x))


def test_published_parameters():
    """590k at 256 channels in the comparison of CARAFE (Wang et al., ICCV 2019)."""
    module = build_upsampler("Deconv", 256)
    assert sum(p.numel() for p in module.parameters()) == 3 * 3 * 256 * 256 + 256 == 590_080


def test_initial_values():
    module = build_upsampler("Deconv", 64)
    bound = (6 / (2 * 64 * 9)) ** 0.5  # Xavier uniform
    assert 0.95 * bound < module.deconv.weight.abs().max() <= bound
    assert not module.deconv.bias.any()


def test_values_that_do_not_fit_raise():
    with pytest.raises(InputError, match="overlap must be at least 0, got -1"):
        build_upsampler("Deconv", 4, overlap=-1)
