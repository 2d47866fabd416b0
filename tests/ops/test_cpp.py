import platform
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from lda_aqu.ops import cpp
from lda_aqu.ops.plain import attention as plain
from test_local_deformable_attention import sample_inputs

pytestmark = pytest.mark.skipif(
    bool(reason := cpp.unavailable(torch.device("cpu"))), reason=reason or "available"
)
INSTRUCTION_SETS = ("generic", "avx2", "avx512")
OUT = (11, 71)  # more rows, and more columns, than a block of the kernels has; odd strips


def run(inputs: tuple, grad_output: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (cpp.attention.forward(*inputs), *cpp.attention.backward(grad_output, *inputs))


def wide_inputs(dtype=torch.float32, size=(9, 14), out=OUT, spread=6.0) -> tuple:
    """The channels of a real pyramid, which fill registers and leave tails; heads cut groups."""
    torch.manual_seed(0)
    (h, w), (y, x) = size, out
    shapes = [(2, 60, y, x), (2, 60, h, w), (2, 156, h, w), (2, 3, 9, 2, y, x), (2, 9, 30)]
    query, key, value, offsets, bias = (torch.randn(s, dtype=torch.float64) for s in shapes)
    return (*(t.to(dtype) for t in (query, key, value, offsets * spread, bias)), 2)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS, indirect=True)
def test_every_instruction_set_agrees_with_plain_pytorch(instruction_set, dtype, tolerance):
    assert cpp.instruction_set() == instruction_set
    inputs = wide_inputs(dtype)
    grad = torch.randn(2, 156, *OUT, dtype=dtype)
    exact = tuple(i.double() if torch.is_tensor(i) else i for i in inputs)
    expected = (plain.forward(*exact), *plain.backward(grad.double(), *exact))
    for actual, wanted in zip(run(inputs, grad), expected, strict=True):
        assert relative_error(actual, wanted) < tolerance


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS[:1], indirect=True)
def test_instruction_sets_that_are_not_there_raise(instruction_set):
    with pytest.raises(ValueError, match="'neon'"):
        cpp.use_instruction_set("neon")
    if platform.machine() == "x86_64":
        assert cpp.instruction_set() == "generic"


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS, indirect=True)
def test_bits_do_not_depend_on_the_threads(instruction_set):
    inputs, threads = wide_inputs(), torch.get_num_threads()
    grad = torch.randn(2, 156, *OUT)
    try:
        torch.set_num_threads(1)
        expected = run(inputs, grad)
        for count in (2, 3, 4, 16):
            torch.set_num_threads(count)
            for actual, wanted in zip(run(inputs, grad), expected, strict=True):
                assert actual.equal(wanted)
    finally:
        torch.set_num_threads(threads)


def test_images_of_a_batch_at_once():
    """Each is as it is by itself, though threads are at work on several."""
    torch.manual_seed(0)
    shapes = [(8, 8, 64, 64), (8, 8, 32, 32), (8, 16, 32, 32), (8, 1, 9, 2, 64, 64)]
    inputs = [torch.randn(s) for s in shapes]
    grad = torch.randn(8, 16, 64, 64)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        together = run((*inputs, None, 1), grad)
    finally:
        torch.set_num_threads(threads)
    for n in range(8):
        alone = run((*(i[n : n + 1] for i in inputs), None, 1), grad[n : n + 1])
        for actual, wanted in zip(together[:5], alone[:5], strict=True):
            assert actual[n : n + 1].equal(wanted)


def test_calls_from_several_threads_at_once():
    inputs, grad = wide_inputs(), torch.randn(2, 156, *OUT)
    expected = run(inputs, grad)
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(lambda _: run(inputs, grad), range(8)):
            assert all(a.equal(b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", cpp.DTYPES)
def test_writes_all_that_it_allocates(dtype, memory_format):
    inputs = list(wide_inputs(dtype))
    inputs[2] = inputs[2].contiguous(memory_format=memory_format)
    grad = torch.randn(2, 156, *OUT, dtype=dtype).contiguous(memory_format=memory_format)
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns with NaN
    try:
        results = run(tuple(inputs), grad)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(result.isfinite().all() for result in results)
    assert results[0].is_contiguous(memory_format=memory_format)
    assert results[3].is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize(
    "size, out",
    [((1, 1), (1, 1)), ((1, 1), (5, 7)), ((1, 9), (2, 1)), ((3, 2), (1, 64)), ((2, 2), (17, 16))],
)
def test_smallest_maps(size, out):
    inputs = wide_inputs(torch.float64, size, out)
    grad = torch.randn(2, 156, *out, dtype=torch.float64)
    expected = (plain.forward(*inputs), *plain.backward(grad, *inputs))
    for actual, wanted in zip(run(inputs, grad), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("depth, channels", [(24, 300), (420, 6)])
def test_more_channels_than_are_scattered_at_once(depth, channels):
    torch.manual_seed(0)
    shapes = [(1, depth, *OUT), (1, depth, 9, 14), (1, channels, 9, 14), (1, 1, 9, 2, *OUT)]
    inputs = (*(torch.randn(s, dtype=torch.float64) for s in shapes), None, 2)
    grad = torch.randn(1, channels, *OUT, dtype=torch.float64)
    expected = plain.backward(grad, *inputs)
    for actual, wanted in zip(cpp.attention.backward(grad, *inputs), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("far", [torch.nan, torch.inf, -torch.inf, 1e30, -1e30])
def test_what_is_nowhere_passes_nothing_on(far):
    query, key, value, offsets, bias, heads = wide_inputs(spread=0.5)
    grad = torch.randn(2, 156, *OUT)
    clean = cpp.attention.backward(grad, query, key, value, offsets, bias, heads)
    offsets[:, :, :, :, :2, :6] = far
    grads = cpp.attention.backward(grad, query, key, value, offsets, bias, heads)
    for actual, wanted in zip(grads[1:3], clean[1:3], strict=True):
        assert actual[..., 5:, :].equal(wanted[..., 5:, :])
        assert actual[..., 8:].equal(wanted[..., 8:])


def test_two_million_output_pixels():
    """Positions far from the origin are as exact in float32 as near ones."""
    torch.manual_seed(0)
    height, width = 1024, 2048
    shapes = [(1, 4, height, width), (1, 4, 512, 1024), (1, 4, 512, 1024)]
    inputs = [torch.randn(s) for s in shapes] + [11 * torch.rand(1, 2, 9, 2, height, width), None]
    output = cpp.attention.forward(*inputs, 1)
    exact = [i if i is None else i.double() for i in inputs]
    assert relative_error(output, plain.forward(*exact, 1)) < 1e-5


def test_more_pixels_than_can_be_numbered_raise():
    query, offsets = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 2, 2, 2)
    huge = torch.zeros(1, 1, 1, 1).expand(1, 1, 2**16, 2**15)
    with pytest.raises(RuntimeError, match=r"2\^31 pixels"):
        cpp.attention.forward(query, huge, huge, offsets, None, 1)


def test_an_empty_batch():
    inputs = tuple(t[:0] if torch.is_tensor(t) and t.dim() > 3 else t for t in wide_inputs())
    assert cpp.attention.forward(*inputs).shape == (0, 156, *OUT)
    *grads, grad_bias = cpp.attention.backward(torch.zeros(0, 156, *OUT), *inputs)
    assert [g.shape[0] for g in grads] == [0] * 4 and grad_bias.eq(0).all()


def test_agrees_with_the_sweep_in_float32():
    for seed in range(100, 130):
        inputs = sample_inputs(seed, torch.float32)
        exact = tuple(i.double() if torch.is_tensor(i) else i for i in inputs)
        torch.testing.assert_close(
            cpp.attention.forward(*inputs).double(), plain.forward(*exact), rtol=1e-5, atol=1e-5
        )
