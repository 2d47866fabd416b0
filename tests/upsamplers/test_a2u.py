from functools import partial

import numpy as np
import oracle
import pytest
import torch
from randomized import assert_matches, randomized


def average_pool(image: np.ndarray, size: int) -> np.ndarray:
    """Means of (C, H, W) over size x size cells that may overlap: (C, size, size)."""
    _, height, width = image.shape
    result = np.zeros((image.shape[0], size, size))
    for i in range(size):
        for j in range(size):
            rows = slice(i * height // size, -(-(i + 1) * height // size))
            columns = slice(j * width // size, -(-(j + 1) * width // size))
            result[:, i, j] = image[:, rows, columns].mean((1, 2))
    return result


def group_norm(image: np.ndarray, groups: int, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    result = np.zeros(image.shape)
    for group in np.split(np.arange(len(image)), groups):
        values = image[group]
        result[group] = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
    return result * weight[:, None, None] + bias[:, None, None]


def a2u(
    x: np.ndarray, guide: np.ndarray, state: dict[str, np.ndarray], k: int, size: int, groups: int
) -> np.ndarray:
    """A2U of one image, (C, H, W) and (G, Y, X), in loops."""
    channels, height, width = guide.shape
    pooled = average_pool(guide, size)
    kernels = oracle.convolve(pooled, state["kernels.1.weight"])
    kernels += state["kernels.1.bias"][:, None, None]
    product = 1
    for n in range(2):
        features = [
            oracle.halve(guide[c : c + 1], kernels[n][None, None])[0] for c in range(channels)
        ]
        features = group_norm(
            np.stack(features), groups, state[f"norms.{n}.weight"], state[f"norms.{n}.bias"]
        )
        product = product * np.where(features > 0, features, 0.01 * features)
    affinity = product.sum(0) / np.sqrt(channels)
    vector = state["projection.1.weight"][:, :, 0, 0] @ guide.mean((1, 2))
    vector += state["projection.1.bias"]
    pixels = oracle.windows(x, (height, width), k)
    output = np.zeros((len(x), height, width))
    for i in range(height):
        for j in range(width):
            corner = i % 2 * 2 + j % 2  # of the 2 x 2 guide pixels of an affinity
            logits = vector.reshape(k * k, 4)[:, corner] * affinity[i // 2, j // 2]
            weights = oracle.softmax(oracle.sigmoid(logits))
            output[:, i, j] = weights @ pixels[:, :, i, j]
    return output


@pytest.mark.parametrize(
    "input_size, guide_size, options",
    [
        ((3, 4), (6, 8), {"guide_channels": 4}),
        ((4, 5), (8, 9), {"kernel_size": 5}),
        ((4, 4), (7, 7), {"encoder_kernel_size": 4, "norm_groups": 3}),
        ((3, 2), (8, 9), {"encoder_kernel_size": 2, "kernel_size": 1}),
    ],
)
def test_matches_the_loops(input_size, guide_size, options):
    options = {"norm_groups": 2, **options}
    upsampler = randomized("A2U", 6, std=1, **options).double()
    x = torch.randn(2, 6, *input_size).double()
    guide = torch.randn(2, upsampler.guide_channels, *guide_size).double()
    k, size = options.get("kernel_size", 3), options.get("encoder_kernel_size", 6)
    loops = partial(a2u, k=k, size=size, groups=options["norm_groups"])
    assert_matches(upsampler, loops, x, guide)
