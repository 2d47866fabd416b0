import math

import numpy as np
import pytest
import torch
from lda_aqu import build_upsampler


def cubic(t: float) -> float:
    """Keys' kernel with a = -0.75."""
    a, t = -0.75, abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def interpolation(input_size: int, output_size: int) -> np.ndarray:
    """(output_size, input_size): the weight of each input pixel; the border is repeated."""
    weights = np.zeros((output_size, input_size))
    for i in range(output_size):
        position = (i + 0.5) * input_size / output_size - 0.5
        for j in range(math.floor(position) - 1, math.floor(position) + 3):
            weights[i, min(max(j, 0), input_size - 1)] += cubic(position - j)
    return weights


@pytest.mark.parametrize("size", [(10, 6), (7, 4), (5, 3), (2, 9), (1, 1)])
def test_matches_cubic_convolution(size):
    x = torch.randn(2, 3, 5, 3, dtype=torch.float64)
    rows, columns = (interpolation(*sizes) for sizes in zip((5, 3), size, strict=True))
    expected = torch.as_tensor(np.einsum("ih,jw,nchw->ncij", rows, columns, x.numpy(force=True)))
    torch.testing.assert_close(build_upsampler("Bicubic", 3)(x, output_size=size), expected)
