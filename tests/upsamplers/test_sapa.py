from functools import partial

import numpy as np
import oracle
import pytest
import torch
from lda_aqu import build_upsampler
from randomized import assert_matches, randomized


def sapa(x: np.ndarray, guide: np.ndarray, state: dict[str, np.ndarray], k: int) -> np.ndarray:
    """SAPA-B of one image, (C, H, W) and (G, Y, X), in loops."""

    def embed(image, norm, projection):
        image = oracle.layer_norm(image, state[f"{norm}.norm.weight"], state[f"{norm}.norm.bias"])
        bias = state[f"{projection}.bias"][:, None, None]
        return oracle.convolve(image, state[f"{projection}.weight"]) + bias

    query, key = embed(guide, "guide_norm", "query"), embed(x, "input_norm", "key")
    keys = oracle.windows(key, guide.shape[1:], k)
    values = oracle.windows(x, guide.shape[1:], k)
    output = np.zeros((len(x), *guide.shape[1:]))
    for i in range(guide.shape[1]):
        for j in range(guide.shape[2]):
            similarities = keys[:, :, i, j] @ query[:, i, j]
            output[:, i, j] = oracle.softmax(similarities) @ values[:, :, i, j]
    return output


@pytest.mark.parametrize(
    "input_size, guide_size, options",
    [
        ((3, 4), (6, 8), {}),
        ((3, 4), (5, 8), {"kernel_size": 3, "guide_channels": 4}),
        ((4, 3), (10, 7), {"kernel_size": 1}),
        ((1, 2), (2, 4), {"embedding_dim": 3}),
    ],
)
def test_matches_the_loops(input_size, guide_size, options):
    upsampler = randomized("SAPAB", 6, std=0.5, **options).double()
    x = torch.randn(2, 6, *input_size).double()
    guide = torch.randn(2, upsampler.guide_channels, *guide_size).double()
    assert_matches(upsampler, partial(sapa, k=options.get("kernel_size", 5)), x, guide)


def test_points_are_affiliated_to_what_they_resemble():
    """An edge that runs through the coarse pixels comes out where the guide has it."""
    upsampler = build_upsampler("SAPAB", 2, embedding_dim=2, kernel_size=3)
    with torch.no_grad():
        for projection in (upsampler.query, upsampler.key):
            projection.weight.copy_(5 * torch.eye(2)[:, :, None, None])
    columns = torch.arange(12)
    guide = torch.stack([columns < 5, columns >= 5]).float()[None, :, None].repeat(1, 1, 12, 1)
    coarse = torch.stack([columns[:6] < 3, columns[:6] >= 3]).float()
    x = coarse[None, :, None].repeat(1, 1, 6, 1)
    y = upsampler(x, guide)
    torch.testing.assert_close(y[..., 2:-2, 2:-2], guide[..., 2:-2, 2:-2])
