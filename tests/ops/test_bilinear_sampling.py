"""Reading a map at positions of one's own."""

import re

import numpy as np
import oracle
import pytest
import torch
from gradients import gradcheck, gradgradcheck
from lda_aqu.ops import sample_bilinear
from random_tensors import normals


@pytest.mark.parametrize(
    "input_size, output_size",
    [((4, 5), (7, 3)), ((3, 4), (3, 4)), ((1, 4), (2, 8)), ((1, 1), (1, 2))],
)
@pytest.mark.parametrize("groups", [1, 3])
def test_matches_the_loops(input_size, output_size, groups):
    normal = normals(0)
    x = normal(2, 6, *input_size, dtype=torch.float64)
    positions = 3 * normal(
        2, groups, 2, *output_size, dtype=torch.float64
    )  # also beyond the border
    expected = np.zeros((2, 6, *output_size))
    for n, g, i, j in np.ndindex(2, groups, *output_size):
        part = slice(g * 6 // groups, (g + 1) * 6 // groups)
        y, x_ = (
            np.clip(float(position), 0, size - 1)
            for position, size in zip(positions[n, g, :, i, j], input_size, strict=True)
        )
        expected[n, part, i, j] = oracle.bilinear_at(x[n, part].numpy(force=True), y, x_)
    torch.testing.assert_close(
        sample_bilinear(x, positions), torch.as_tensor(expected), rtol=1e-9, atol=1e-11
    )


def test_derivatives_of_first_and_second_order():
    normal = normals(0)
    x = normal(1, 4, 3, 4, dtype=torch.float64).requires_grad_()
    positions = (2 * normal(1, 2, 2, 5, 6, dtype=torch.float64)).requires_grad_()
    assert gradcheck(sample_bilinear, (x, positions))
    assert gradgradcheck(sample_bilinear, (x, positions))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_positions_keep_their_precision_in_half(dtype):
    """Columns of which neither dtype has every other."""
    columns = torch.arange(2048.0, 4096.0)
    x = (torch.arange(4096) % 4).to(dtype).expand(1, 1, 2, 4096)
    positions = torch.stack((torch.zeros(2, 2048), columns.expand(2, 2048)))[None, None]
    y = sample_bilinear(x, positions)
    assert y.dtype == dtype
    torch.testing.assert_close(y, x[..., 2048:], atol=0.02, rtol=0)


def test_a_single_pixel_read_from_more_raises():
    with pytest.raises(RuntimeError, match=r"cannot read 1 pixel from \(1, 4, 3, 5\)"):
        sample_bilinear(torch.zeros(1, 4, 3, 5), torch.zeros(1, 1, 2, 1, 5))


@pytest.mark.parametrize(
    "x, positions",
    [
        ((2, 4, 6, 6), (2, 1, 5, 7, 2)),  # as of grid_sample, with groups
        ((2, 4, 6, 6), (2, 1, 1, 5, 7)),
        ((2, 4, 6, 6), (2, 2, 5, 7)),
        ((4, 6, 6), (2, 1, 2, 5, 7)),
    ],
)
def test_shapes_that_do_not_fit_raise(x, positions):
    expected = "expected x (N, C, H, W) and positions (N, g, 2, Y, X), got"
    with pytest.raises(RuntimeError, match=re.escape(f"{expected} {x} and {positions}")):
        sample_bilinear(torch.zeros(x), torch.zeros(positions))
