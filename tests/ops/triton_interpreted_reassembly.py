"""Run by test_triton.py, in a process that has TRITON_INTERPRET=1 from its start."""

import pytest
import torch
from lda_aqu.ops import reassemble
from lda_aqu.ops.layout import compute_dtype
from lda_aqu.ops.plain import reassembly as plain
from lda_aqu.ops.triton import launch, reassembly
from tensors import laid_out
from triton_interpreter import (
    DOUBLE,
    TOLERANCES,
    assert_all_close,
    exact,
    large_blocks,  # noqa: F401  a fixture
    set_blocks,
)

pytestmark = pytest.mark.cpu

# input size, output size, k, groups
SHAPES = [
    ((2, 3), (4, 6), 3, 2),
    ((2, 2), (2, 4), 5, 1),
    ((2, 2), (6, 8), 3, 1),
    ((4, 5), (4, 5), 1, 3),
    ((3, 5), (5, 9), 3, 1),
    ((4, 6), (3, 4), 3, 1),
    ((5, 3), (10, 2), 1, 6),
    ((1, 1), (2, 3), 5, 1),
]


def draw(shape: tuple, dtype=DOUBLE) -> tuple[torch.Tensor, ...]:
    """A map, weights, and a query."""
    input_size, output_size, k, groups = shape
    generator = torch.Generator().manual_seed(0)
    n = 2 if k == 1 else 1  # images
    sizes = ((n, 6, *input_size), (n, groups, k * k, *output_size), (n, 6, *output_size))
    return tuple(torch.randn(s, generator=generator, dtype=DOUBLE).to(dtype) for s in sizes)


def check(x: torch.Tensor, weights: torch.Tensor, query: torch.Tensor, tolerance: float) -> None:
    """All three are those of plain PyTorch in float64."""
    for name, inputs in (
        ("reassemble", (x, weights)),
        ("similarity", (x, query, *weights.shape[1:3])),
        ("spread", (weights, query, *x.shape[2:])),
    ):
        results = getattr(reassembly, name)(*inputs)
        assert results[0].dtype == compute_dtype(*inputs[:2])
        assert_all_close(results, getattr(plain, name)(*exact(inputs)), tolerance)


@pytest.mark.parametrize("shape", SHAPES)
def test_matches_plain_pytorch(shape):
    check(*draw(shape), TOLERANCES[DOUBLE])


@pytest.mark.parametrize("layout", ["channels_last", "cut"])
def test_layouts(layout):
    x, weights, query = draw(SHAPES[0])
    weights = weights.mT.contiguous().mT
    check(laid_out(x, layout), weights, laid_out(query, layout), TOLERANCES[DOUBLE])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_in_float32(dtype):
    check(*draw(SHAPES[0], dtype), 1e-5)


def test_mixed_dtypes():
    x, weights, query = draw(SHAPES[0], torch.float32)
    check(x.half(), weights, query.bfloat16(), 1e-5)


def test_several_tiles(monkeypatch):
    set_blocks(monkeypatch, BLOCK_PIXELS=16, BLOCK_CHANNELS=4)
    check(*draw(((4, 5), (5, 7), 1, 1)), TOLERANCES[DOUBLE])


def test_64_bit_addresses(monkeypatch):
    monkeypatch.setattr(launch, "MAX_INT32_ELEMENTS", 0)
    check(*draw(SHAPES[3]), TOLERANCES[DOUBLE])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, in the interpreter
def test_nan_and_infinity():
    x, weights, query = draw(SHAPES[0])
    x[0, 1, 1, 2] = torch.nan
    x[0, 5, 0, 0] = torch.inf
    weights[0, 0, 4, 3, 1] = torch.nan
    query[0, 2, 0, 3] = -torch.inf
    check(x, weights, query, TOLERANCES[DOUBLE])


def test_empty_batch():
    check(*(t[:0] for t in draw(SHAPES[0])), 0)


def test_gradients():
    """Of an operator, by the two others."""
    grads = []
    for backend in ("triton", "plain"):
        x, weights, query = (t.requires_grad_() for t in draw(SHAPES[3]))
        y = reassemble(x, weights, backend)
        grads.append(torch.autograd.grad(y, (x, weights), query))
    assert_all_close(*grads, TOLERANCES[DOUBLE])
