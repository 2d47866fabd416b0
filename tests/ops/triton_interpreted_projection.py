"""Run by test_triton.py, in a process that has TRITON_INTERPRET=1 from its start."""

import pytest
import torch
from lda_aqu.ops.plain import projection as plain
from lda_aqu.ops.triton import launch, projection
from tensors import laid_out
from triton_interpreter import (
    DOUBLE,
    TOLERANCES,
    assert_all_close,
    exact,
    large_blocks,  # noqa: F401  a fixture, as the next
    products_of_bfloat16,  # noqa: F401
    set_blocks,
)

pytestmark = pytest.mark.cpu

# batch, channels, height, width, channels of the projections
SHAPES = {
    "default": (1, 8, 3, 5, (2, 3)),
    "one pixel each": (2, 5, 1, 1, (1,)),
    "one channel": (1, 1, 4, 3, (2,)),
    "three": (2, 40, 7, 1, (4, 1, 6)),
    "wide": (1, 33, 3, 4, (7, 130)),
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def draw(shape: tuple, dtype=DOUBLE) -> tuple:
    """Inputs of the forward pass but for the dtype of its results."""
    batch, channels, height, width, widths = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=DOUBLE)

    x = 3 * normal(batch, channels, height, width) + 2
    weight = channels**-0.5 * normal(sum(widths), channels, 1, 1)
    tensors = (x, normal(channels), normal(channels), weight)
    return *(t.to(dtype) for t in tensors), widths


def check(inputs: tuple, dtype: torch.dtype, tolerance: float, grad_layout="contiguous") -> None:
    """Results and all gradients are those of plain PyTorch in float64."""
    outputs = projection.project_normalized(*inputs, dtype)
    assert {o.dtype for o in outputs} == {dtype}
    assert_all_close(outputs, plain.project_normalized(*exact(inputs), DOUBLE), tolerance)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(o.shape, generator=generator).to(dtype) for o in outputs]
    grads = [laid_out(grad, grad_layout) for grad in grads]
    actual = projection.project_normalized_backward(grads, *inputs, dtype)
    assert [a.dtype for a in actual] == [i.dtype for i in inputs[:4]]
    with torch.no_grad():
        expected = plain.project_normalized_backward(exact(grads), *exact(inputs), DOUBLE)
    assert_all_close(actual, expected, tolerance)


@pytest.mark.parametrize(
    "name, layout",
    [
        *((name, "contiguous") for name in SHAPES),
        *(("three", "channels_last"), ("default", "cut"), ("default", "transposed")),
    ],
)
def test_matches_plain_pytorch(name, layout):
    x, *others = draw(SHAPES[name])
    check((laid_out(x, layout), *others), DOUBLE, TOLERANCES[DOUBLE], layout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["default", "three"])
def test_dtypes(name, dtype):
    check(draw(SHAPES[name], dtype), dtype, TOLERANCES[dtype])


@pytest.mark.parametrize(
    "dtypes", [(torch.float32, torch.bfloat16), (torch.float16, torch.float32)]
)
def test_mixed_dtypes(dtypes):
    """The map and the results; the parameters of autocast are in float32."""
    of_x, dtype = dtypes
    x, *others = draw(SHAPES["default"], torch.float32)
    check((x.to(of_x), *others), dtype, TOLERANCES[torch.bfloat16])


def test_several_tiles(monkeypatch):
    """Of pixels, channels and outputs, the last of them in part; several for each program."""
    set_blocks(monkeypatch, BLOCK_PIXELS=16)
    check(draw((2, 35, 3, 10, (60, 75))), DOUBLE, TOLERANCES[DOUBLE])


def test_64_bit_addresses(monkeypatch):
    monkeypatch.setattr(launch, "MAX_INT32_ELEMENTS", 0)
    check(draw(SHAPES["default"]), DOUBLE, TOLERANCES[DOUBLE])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, in the interpreter
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_pixel(bad):
    x, *others = draw(SHAPES["default"])
    x[0, 3, 1, 2] = bad
    check((x, *others), DOUBLE, TOLERANCES[DOUBLE])


def test_an_empty_batch():
    check(draw((0, 6, 3, 5, (2, 3))), DOUBLE, 0)


@pytest.mark.parametrize("dtype, most", [(torch.float32, 1024), (DOUBLE, 512)])
def test_says_what_it_cannot_compute(dtype, most):
    inputs = (*draw((1, most + 1, 1, 1, (1,)), dtype), dtype)
    reason = f"the map has more than {most} channels"
    assert projection.unavailable("project_normalized", *inputs) == reason
    assert projection.unavailable("project_normalized_backward", [inputs[0]], *inputs) == reason
    assert projection.unavailable("project_normalized", *draw((1, most, 1, 1, (1,)), dtype)) == ""
