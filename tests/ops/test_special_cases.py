import pytest
import torch
from lda_aqu.errors import InputError
from lda_aqu.ops import special_cases
from lda_aqu.ops.special_cases import attend
from random_tensors import normals
from torch.nn import functional as F

SIZES = [
    # input, output
    ((5, 7), (10, 14)),
    ((4, 3), (13, 12)),
    ((6, 6), (9, 6)),
    ((7, 9), (3, 4)),
    ((2, 2), (8, 5)),
]
ALIGN_CORNERS = pytest.mark.parametrize("align_corners", [True, False])
EACH_SIZE = pytest.mark.parametrize("input_size, output_size", SIZES)


def random_map(*shape: int) -> torch.Tensor:
    return normals(0)(*shape, dtype=torch.float64)


def assert_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@EACH_SIZE
def test_nearest(input_size, output_size):
    x = random_map(2, 3, *input_size)
    output = attend(x, *special_cases.nearest(input_size, output_size))
    assert_equal(output, F.interpolate(x, output_size, mode="nearest"))


@ALIGN_CORNERS
@EACH_SIZE
@pytest.mark.parametrize("case", ["bilinear", "bilinear_over_pixels"])
def test_bilinear(case, input_size, output_size, align_corners):
    x = random_map(2, 3, *input_size)
    positions, weights = getattr(special_cases, case)(input_size, output_size, align_corners)
    output = attend(x, positions, weights)
    expected = F.interpolate(x, output_size, mode="bilinear", align_corners=align_corners)
    assert_equal(output, expected)
    if case == "bilinear_over_pixels":
        assert positions.eq(positions.round()).all()  # so all of it is the attention's doing


def reassembled(x: torch.Tensor, kernels: torch.Tensor, kernel_size: int) -> torch.Tensor:
    """CARAFE's reassembly, pixel by pixel: kernels (N, k², Y, X) over the zero-padded map."""
    reach = kernel_size // 2
    padded = F.pad(x, [reach] * 4)
    height, width = kernels.shape[2:]
    output = x.new_zeros(*x.shape[:2], height, width)
    for i in range(height):
        for j in range(width):
            row, column = i * x.shape[2] // height, j * x.shape[3] // width
            patch = padded[:, :, row : row + kernel_size, column : column + kernel_size]
            output[:, :, i, j] = (patch.flatten(2) * kernels[:, None, :, i, j]).sum(2)
    return output


@EACH_SIZE
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_carafe(input_size, output_size, kernel_size):
    x = random_map(2, 3, *input_size)
    logits = 3 * random_map(2, kernel_size**2, *output_size)
    kernels = logits.exp() / logits.exp().sum(1, keepdim=True)
    output = attend(x, *special_cases.carafe(input_size, logits))
    assert_equal(output, reassembled(x, kernels, kernel_size))


def test_a_size_of_one_is_refused():
    for input_size, output_size in (((1, 4), (2, 8)), ((4, 4), (8, 1))):
        positions, weights = special_cases.nearest(input_size, output_size)
        with pytest.raises(InputError, match="at least 2"):
            attend(random_map(1, 1, *input_size), positions, weights)
