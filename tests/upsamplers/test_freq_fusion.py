import numpy as np
import oracle
import pytest
import torch
from lda_aqu import build_upsampler
from random_tensors import normals
from randomized import assert_matches, randomized
from torch.nn import functional as F

GROUPS = 2


def freq_fusion(x: np.ndarray, guide: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    """The paper's equations for one image, (C, H, W) and (G, Y, X), one pixel at a time."""
    size = guide.shape[1:]

    def convolve(name: str, image: np.ndarray) -> np.ndarray:
        bias = state[f"{name}.bias"][:, None, None]
        return oracle.convolve(image, state[f"{name}.weight"]) + bias

    def low_pass(name: str, features: np.ndarray, image: np.ndarray) -> np.ndarray:
        weights = oracle.softmax(convolve(name, features))
        pixels = oracle.windows(image, size, round(len(weights) ** 0.5))
        return (pixels * weights[:, None]).sum(0)

    def high_pass(features: np.ndarray, image: np.ndarray) -> np.ndarray:
        return image - low_pass("high_pass", features, image)

    fine, coarse = convolve("guide_compressor", guide), convolve("input_compressor", x)
    fused = low_pass("low_pass", fine, coarse) + high_pass(fine, fine) + fine

    similarity = np.zeros((8, *size))
    around = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]
    length = np.sqrt((fused**2).sum(0) + 1e-6)
    for i, j in np.ndindex(*size):
        for n, (a, b) in enumerate(around):
            if 0 <= i + a < size[0] and 0 <= j + b < size[1]:
                product = fused[:, i, j] @ fused[:, i + a, j + b]
                similarity[n, i, j] = product / length[i, j] / length[i + a, j + b]
    features = np.concatenate((fused, similarity))
    offsets = convolve("direction", features) * oracle.sigmoid(convolve("magnitude", features))

    upsampled = low_pass("low_pass", fused, x)
    resampled = np.zeros(upsampled.shape)
    for g, part in enumerate(np.split(np.arange(len(x)), GROUPS)):
        for i, j in np.ndindex(*size):
            row = np.clip(i + offsets[2 * g, i, j], 0, size[0] - 1)
            column = np.clip(j + offsets[2 * g + 1, i, j], 0, size[1] - 1)
            resampled[part, i, j] = oracle.bilinear_at(upsampled[part], row, column)
    if "guide_projection.weight" in state:
        guide = convolve("guide_projection", guide)
    return resampled + high_pass(fused, guide)


@pytest.mark.parametrize(
    "input_size, guide_size, options",
    [
        ((3, 4), (6, 8), {}),
        ((3, 4), (5, 8), {"low_pass_kernel_size": 3, "high_pass_kernel_size": 5}),
        ((4, 3), (10, 7), {"compressed_channels": 2}),
        ((1, 2), (2, 4), {"guide_channels": 4}),
        ((1, 3), (1, 5), {}),
    ],
)
def test_matches_the_loops(input_size, guide_size, options):
    options = {"compressed_channels": 5, "num_groups": GROUPS, **options}
    upsampler = randomized("FreqFusion", 6, std=0.5, **options).double()
    x = torch.randn(2, 6, *input_size).double()
    guide = torch.randn(2, upsampler.guide_channels, *guide_size).double()
    assert_matches(upsampler, freq_fusion, x, guide)


def test_starts_as_means_of_windows():
    """The mean of 5 x 5 input pixels, plus what the mean of 3 x 3 guide pixels lacks."""
    normal = normals(0)
    x, guide = normal(1, 8, 9, 9), normal(1, 8, 18, 18)
    y = build_upsampler("FreqFusion", 8)(x, guide)[:, :, 4:-4, 4:-4]
    smooth = F.avg_pool2d(x, 5, stride=1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    detail = guide - F.avg_pool2d(guide, 3, stride=1, padding=1)
    torch.testing.assert_close(y, smooth + detail[:, :, 4:-4, 4:-4], atol=0.05, rtol=0)


def test_gradients_where_the_fused_map_is_zero():
    upsampler = build_upsampler("FreqFusion", 8)
    x, guide = (torch.zeros(1, 8, *size, requires_grad=True) for size in ((2, 3), (4, 6)))
    upsampler(x, guide).sum().backward()
    for gradient in (x.grad, guide.grad, *(p.grad for p in upsampler.parameters())):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    torch.manual_seed(0)
    upsampler, normal = build_upsampler("FreqFusion", 16), normals(0)
    x, guide = normal(1, 16, 4, 5), normal(1, 16, 8, 10)
    expected = upsampler(x, guide)
    y = upsampler.to(dtype)(x.to(dtype), guide.to(dtype))
    y.float().sum().backward()
    assert y.dtype == dtype and all(p.grad.isfinite().all() for p in upsampler.parameters())
    assert (y.float() - expected).abs().mean() < 0.01 * expected.abs().mean()
