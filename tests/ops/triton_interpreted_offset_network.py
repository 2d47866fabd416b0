"""Run by test_triton.py, in a process that has TRITON_INTERPRET=1 from its start."""

import pytest
import torch
from lda_aqu.ops.plain import offset_network as plain
from lda_aqu.ops.triton import launch, offset_network
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

# batch, groups, channels of a group, height, width, k_e, k_u, offset range, size of the query
# before it is resized, or None where it is not
SHAPES = {
    "default": (1, 2, 4, 5, 7, 3, 3, 11.0, (3, 4)),
    "not resized": (1, 2, 4, 5, 7, 3, 3, 11.0, None),
    "one pixel": (2, 1, 3, 1, 1, 1, 1, 2.0, (2, 3)),
    "one row, smaller": (1, 1, 5, 1, 17, 3, 3, 3.0, (3, 30)),
    "one column, from a pixel": (1, 3, 3, 6, 1, 3, 1, 0.5, (1, 1)),
    "five by five, no range": (1, 1, 17, 2, 3, 5, 1, 0.0, (2, 3)),
    "five by five points": (1, 1, 17, 2, 3, 1, 5, 3.0, (2, 3)),
}
# What takes the interpreter the least time, of a width at which layouts differ.
SMALL = (1, 1, 3, 3, 2, 3, 1, 0.5, (2, 2))


def draw(shape: tuple, dtype=DOUBLE) -> tuple:
    """Inputs of the forward pass."""
    batch, groups, channels, height, width, kernel, window, offset_range, input_size = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(size, generator=generator, dtype=DOUBLE)).to(dtype)

    outputs = 2 * window**2
    return (
        normal(batch, groups * channels, *(input_size or (height, width))),
        normal(channels, 1, 3, 3, scale=0.5),
        normal(channels),
        normal(channels),
        normal(outputs, channels, kernel, kernel, scale=(kernel * kernel * channels) ** -0.5),
        normal(outputs),
        groups,
        offset_range,
        (height, width) if input_size else None,
    )


def grads_of(results: list[torch.Tensor]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(r.shape, generator=generator).to(r.dtype) for r in results]


def backward(file, grads, results, inputs) -> list[torch.Tensor]:
    """The gradients that a backend's file computes."""
    query, *others, output_size = inputs
    seen = results[1] if output_size else query
    with torch.no_grad():
        return file.predict_offsets_backward(
            grads, results[0], seen, *others, query.shape[2:] if output_size else None
        )


def check(inputs: tuple, tolerance: float, grads: list[torch.Tensor] | None = None) -> None:
    """Results and all gradients are those of plain PyTorch in float64."""
    results = offset_network.predict_offsets(*inputs)
    expected = plain.predict_offsets(*exact(inputs))
    assert results[0].dtype == torch.promote_types(inputs[0].dtype, torch.float32)
    assert all(r.dtype == inputs[0].dtype for r in results[1:])
    assert_all_close(results, expected, tolerance)
    grads = grads or grads_of(results)
    actual = backward(offset_network, grads, results, inputs)
    assert [a.dtype for a in actual] == [i.dtype for i in inputs[:6]]
    expected = backward(plain, exact(grads), expected, exact(inputs))
    assert_all_close(actual, expected, tolerance)


@pytest.mark.parametrize("name", SHAPES)
def test_matches_plain_pytorch(name):
    check(draw(SHAPES[name]), TOLERANCES[DOUBLE])


@pytest.mark.parametrize("layout", ["channels_last", "cut"])
def test_layouts(layout):
    """Of the query and its gradient, and of the gradients that come."""
    query, *others = draw((*SMALL[:-1], None))
    inputs = (laid_out(query, layout), *others)
    grads = grads_of(offset_network.predict_offsets(*inputs))
    grads = [grad.transpose(-1, -2).contiguous().transpose(-1, -2) for grad in grads]
    check(inputs, TOLERANCES[DOUBLE], grads)


def test_a_resized_query_that_lost_its_layout():
    """As where saved tensors are moved to the CPU and back."""
    inputs = draw(SMALL)
    results = offset_network.predict_offsets(*inputs)
    grads = grads_of(results)
    expected = backward(offset_network, grads, results, inputs)
    assert not results[1].is_contiguous()
    results[1] = results[1].contiguous()
    assert_all_close(backward(offset_network, grads, results, inputs), expected, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype):
    check(draw(SMALL, dtype), TOLERANCES[dtype])


def test_autocast():
    """The query is in half precision, its parameters are not."""
    query, *others = draw(SMALL, torch.float32)
    check((query.bfloat16(), *others), TOLERANCES[torch.bfloat16])


def test_several_tiles(monkeypatch):
    """The last of them in part; several for each program."""
    set_blocks(monkeypatch, BLOCK_PIXELS=16, BLOCK_CHANNELS=4)
    check(draw((2, 1, 5, 3, 7, 1, 1, 2.0, (3, 4))), TOLERANCES[DOUBLE])


def test_64_bit_addresses(monkeypatch):
    monkeypatch.setattr(launch, "MAX_INT32_ELEMENTS", 0)
    check(draw(SHAPES["one pixel"]), TOLERANCES[DOUBLE])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, in the interpreter
def test_what_is_not_finite_stays_where_it_is_seen():
    """In the query, and in the gradient of the resized query."""
    inputs = draw((1, 2, 3, 6, 9, 3, 1, 2.0, None))
    inputs[0][0, 0, 2, 6] = torch.inf
    inputs[0][0, 4, 5, 0] = torch.nan
    assert offset_network.predict_offsets(*inputs)[0].isfinite().any()
    check(inputs, TOLERANCES[DOUBLE])
    inputs = draw(SHAPES["default"])
    grads = grads_of(offset_network.predict_offsets(*inputs))
    grads[1][0, 3, 2, 3] = torch.nan
    check(inputs, TOLERANCES[DOUBLE], grads)


def test_positions_are_not_rounded():
    """In float32 as exact as pixels are, also far to the right."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 1, 400, generator=generator)
    resized = torch.empty(1, 4, 1, 1201).contiguous(memory_format=torch.channels_last)
    offset_network._resize(query, resized)
    expected = torch.nn.functional.interpolate(
        query.double(), (1, 1201), mode="bilinear", align_corners=True
    )
    torch.testing.assert_close(resized.double(), expected, rtol=0, atol=1e-6)


def test_an_empty_batch():
    check(draw((0, 2, 4, 5, 7, 3, 3, 2.0, (3, 4))), 0)
    check(draw((0, 2, 4, 5, 7, 3, 3, 2.0, None)), 0)


@pytest.mark.parametrize(
    "channels, window, reason",
    [
        (1025, 1, "groups have more than 1024 channels, or outputs"),
        (512, 5, "512 channels of a group and 50 outputs take too much shared memory"),
    ],
)
def test_says_what_it_cannot_compute(channels, window, reason):
    inputs = draw((1, 1, channels, 1, 1, 1, window, 1.0, None), torch.float32)
    assert offset_network.unavailable("predict_offsets", *inputs) == reason
    saved = (None, None, *inputs[:6])
    assert offset_network.unavailable("predict_offsets_backward", *saved) == reason
    assert offset_network.unavailable("predict_offsets", *draw(SHAPES["default"])) == ""
