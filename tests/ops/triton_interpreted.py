"""Run by test_triton.py, in a process that has TRITON_INTERPRET=1 from its start."""

from types import ModuleType

import numpy as np
import oracle
import pytest
import torch
from lda_aqu import LDAAQU
from lda_aqu.ops import triton as backend
from lda_aqu.ops.plain import attention as plain
from lda_aqu.ops.triton import attention, configurations, launch

pytestmark = pytest.mark.cpu

# batch, heads, groups, depth, channels, k, input size, output size, bias
CASES = {
    "default": (1, 1, 2, 4, 6, 3, (2, 2), (3, 2), True),
    "heads across groups": (1, 2, 3, 6, 12, 1, (2, 2), (3, 5), True),
    "groups across heads": (1, 3, 2, 6, 6, 1, (3, 1), (2, 4), False),
    "heads within groups": (1, 4, 2, 4, 8, 1, (2, 2), (5, 3), True),
    "groups within heads": (1, 2, 4, 8, 4, 1, (2, 1), (4, 4), True),
    "five by five": (1, 1, 1, 3, 5, 5, (2, 3), (2, 3), True),
    "seven by seven": (1, 1, 1, 1, 2, 7, (3, 2), (2, 3), True),
    "one output row": (1, 1, 1, 2, 3, 1, (4, 3), (1, 5), True),
    "one output column": (2, 1, 1, 2, 2, 1, (2, 3), (6, 1), False),
    "one input pixel": (1, 1, 2, 2, 2, 1, (1, 1), (3, 2), True),
    "one pixel each": (1, 1, 1, 1, 1, 3, (1, 1), (1, 1), False),
    "smaller": (1, 1, 1, 3, 2, 1, (5, 4), (2, 3), True),
    "many channels": (1, 1, 1, 130, 259, 1, (2, 2), (2, 3), True),
}


def draw(shapes: tuple, dtype=torch.float64) -> tuple:
    batch, heads, groups, depth, channels, k, input_size, output_size, has_bias = shapes
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return (
        normal(batch, depth, *output_size),
        normal(batch, depth, *input_size),
        normal(batch, channels, *input_size),
        2 * normal(batch, groups, k**2, 2, *output_size),  # many leave the map
        normal(heads, k**2, depth // heads) if has_bias else None,
        heads,
    )


def forward(file: ModuleType, *inputs) -> torch.Tensor:
    """The output that a backend's file computes."""
    (output,) = file.local_deformable_attention(*inputs)
    return output


def backward(file: ModuleType, grad_output: torch.Tensor, *inputs) -> list[torch.Tensor]:
    """The gradients that it computes."""
    with torch.no_grad():  # else those of plain PyTorch are made to be differentiated themselves
        return file.local_deformable_attention_backward([grad_output], *inputs)


def assert_same(inputs: tuple, rtol: float, atol: float) -> None:
    """Output and all gradients are those of plain PyTorch, NaN where these are."""
    output = forward(attention, *inputs)
    expected = forward(plain, *inputs)
    torch.testing.assert_close(output, expected, rtol=rtol, atol=atol, equal_nan=True)
    generator = torch.Generator().manual_seed(0)
    grad_output = torch.randn(output.shape, generator=generator).to(output.dtype)
    grads = backward(attention, grad_output, *inputs)
    names = ("query", "key", "value", "offsets", "bias")[: len(grads)]
    for name, grad, expected in zip(
        names, grads, backward(plain, grad_output, *inputs), strict=True
    ):
        torch.testing.assert_close(
            grad, expected, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


def set_blocks(monkeypatch, side: int, samples: int, channels: int) -> None:
    """Tiles of ``side`` squared pixels, strips of ``side`` positions, and so many channels."""
    bytes_ = channels * torch.float64.itemsize
    blocks = {"PASS_BYTES": bytes_, "CHUNK_BYTES": max(bytes_ // 2, 8)}
    pixels = configurations.Row(blocks | {"TILE_ROWS": side, "TILE_COLUMNS": side})
    source = configurations.Row(blocks | {"STRIP": side, "SAMPLES": samples})
    monkeypatch.setitem(configurations.TABLE, "forward_kernel", (pixels,))
    monkeypatch.setitem(configurations.TABLE, "backward_pixels_kernel", (pixels,))
    monkeypatch.setitem(configurations.TABLE, "backward_source_kernel", (source,))


@pytest.fixture(autouse=True)
def large_blocks(monkeypatch):
    """The interpreter's time goes with the number of programs and loops, not with their size."""
    set_blocks(monkeypatch, side=8, samples=128, channels=256)


@pytest.mark.parametrize("case", sorted({*CASES} - {"seven by seven"}))
def test_matches_plain_pytorch(case):
    assert backend.is_interpreted()
    assert_same(draw(CASES[case]), rtol=1e-10, atol=1e-12)


@pytest.mark.slow  # TRITON_INTERPRET=1 pytest -m slow tests/ops/triton_interpreted.py
def test_matches_plain_pytorch_in_a_large_window():
    assert_same(draw(CASES["seven by seven"]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", ["default", "heads across groups"])
def test_matches_the_loops(case):
    inputs = draw(CASES[case])
    arrays = [i.numpy() if torch.is_tensor(i) else i for i in inputs]
    expected = torch.from_numpy(oracle.attention(*arrays))
    torch.testing.assert_close(forward(attention, *inputs), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_random_shapes_in_float32(seed):
    rng = np.random.default_rng(seed)
    heads, groups = (int(rng.integers(1, 4)) for _ in range(2))
    unit = int(np.lcm(heads, groups))
    depth, channels = (unit * int(rng.integers(1, 4)) for _ in range(2))
    sizes = [tuple(int(n) for n in rng.integers(1, 4, 2)) for _ in range(2)]
    shapes = (1, heads, groups, depth, channels, int(rng.choice([1, 1, 3])), *sizes, seed % 2 == 0)
    assert_same(draw(shapes, torch.float32), rtol=1e-5, atol=1e-5)


def test_small_blocks(monkeypatch):
    """What fills several blocks, and the last of them in part: pixels, samples, channels, strips.

    So it is with heads and groups, of which each is several passes over the channels.
    """
    set_blocks(monkeypatch, side=2, samples=4, channels=2)
    monkeypatch.setattr(attention, "BIAS_SPAN", 4)
    monkeypatch.setitem(
        configurations.TABLE, "backward_bias_kernel", (configurations.Row({"PIXELS": 2}),)
    )
    assert_same(draw((1, 1, 1, 3, 5, 1, (2, 5), (3, 5), True)), rtol=1e-10, atol=1e-12)
    assert_same(draw((1, 2, 1, 6, 6, 1, (1, 3), (1, 2), True)), rtol=1e-10, atol=1e-12)


def test_64_bit_addresses(monkeypatch):
    monkeypatch.setattr(launch, "MAX_INT32_ELEMENTS", 0)
    assert_same(draw(CASES["heads within groups"]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    inputs = draw(CASES["one input pixel"], dtype)
    assert forward(attention, *inputs).dtype == dtype
    # No more than the rounding of the results.
    assert_same(inputs, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_mixed_dtypes():
    query, key, value, offsets, bias, heads = draw(CASES["one output row"])
    inputs = (query.half(), key.half(), value.bfloat16(), offsets.float(), bias.float(), heads)
    assert_same(inputs, rtol=torch.finfo(torch.bfloat16).eps, atol=1e-4)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, in the interpreter
def test_nan_and_infinity():
    """In offsets, queries, keys and values: NaN where plain PyTorch has it, and nowhere else."""
    shapes = (1, 2, 1, 2, 4, 1, (3, 3), (3, 5), True)
    query, key, value, offsets, bias, heads = draw(shapes)
    offsets *= 0.1  # so that most positions lie on the map
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e300], dtype=torch.float64)
    offsets[0, 0, 0, 0, 0] = bad
    offsets[0, 0, 0, 1, 1, 1:4] = bad[:3]
    query[0, 0, 2, 2] = torch.nan
    key[0, 1, 2, 2] = torch.inf
    value[0, 0, 0, 0] = torch.nan
    value[0, 3, 2, 1] = -torch.inf
    inputs = (query, key, value, offsets, bias, heads)
    output = forward(attention, *inputs)
    assert output[0, :, 0, :3].isnan().all() and output[0, :, 0, 3:].eq(0).all()
    assert output.isfinite().any()
    assert_same(inputs, rtol=1e-10, atol=1e-12)


def test_reads_nothing_outside_the_map():
    """The map lies between NaN, in the layout that is read without a copy."""
    inputs = list(draw((1, 1, 1, 2, 3, 1, (2, 3), (4, 5), True)))
    for i in (1, 2):
        n, c, h, w = inputs[i].shape
        memory = torch.full((2 * h * w + h * w, c), torch.nan, dtype=torch.float64)
        middle = memory[h * w : 2 * h * w].view(n, h, w, c).permute(0, 3, 1, 2)
        assert middle.is_contiguous(memory_format=torch.channels_last)
        inputs[i] = middle.copy_(inputs[i])
    assert forward(attention, *inputs).isfinite().all()
    assert_same(tuple(inputs), rtol=1e-10, atol=1e-12)


def test_memory_formats():
    """The output and the value's gradient have the format of the value; any strides are read."""
    inputs = draw((2, 1, 1, 2, 3, 1, (2, 3), (3, 2), True))
    expected = forward(attention, *inputs)
    assert expected.is_contiguous()
    query, key, value, offsets, bias, heads = inputs
    value = value.contiguous(memory_format=torch.channels_last)
    key = key.repeat_interleave(2, dim=1)[:, ::2]
    strided = (query.mT.contiguous().mT, key, value, offsets.mT.contiguous().mT)
    output = forward(attention, *strided, bias, heads)
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    assert_same((*strided, bias, heads), rtol=1e-10, atol=1e-12)
    grads = backward(attention, output, *strided, bias, heads)
    assert grads[2].is_contiguous(memory_format=torch.channels_last)
    expanded = torch.ones((), dtype=output.dtype).expand(output.shape)
    for grad, expected in zip(
        backward(attention, expanded, *inputs),
        backward(plain, expanded, *inputs),
        strict=True,
    ):
        torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-12)


def test_positions_far_outside_read_zero():
    query, key, value, offsets, bias, heads = draw((1, 1, 1, 2, 2, 1, (2, 2), (3, 2), True))
    inputs = (query, key, value, offsets + 1e6, bias, heads)
    assert forward(attention, *inputs).eq(0).all()
    grads = backward(attention, torch.ones_like(query), *inputs)
    assert all(grad.eq(0).all() for grad in grads[1:4])


def test_empty_batch():
    assert_same(draw((0, 1, 1, 2, 2, 1, (2, 2), (3, 3), True)), rtol=0, atol=0)


@pytest.mark.slow  # TRITON_INTERPRET=1 pytest -m slow tests/ops/triton_interpreted.py
def test_matches_the_published_implementation(golden, monkeypatch):
    """The small variant's module, all of it in Triton."""
    set_blocks(monkeypatch, side=32, samples=1024, channels=256)
    reference = golden("lite_c64_r16")
    module = LDAAQU(64, reduction=16, backend="triton").double()
    module.load_state_dict(reference["state_dict"])
    x = reference["x"].detach().requires_grad_()
    y = module(x)
    y.backward(reference["grad_y"])
    actual = {"y": y, "x": x.grad, **{k: p.grad for k, p in module.named_parameters()}}
    expected = {"y": reference["y"], "x": reference["grad_x"], **reference["param_grads"]}
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
