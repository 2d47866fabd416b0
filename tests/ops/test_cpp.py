import ctypes
import platform
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from lda_aqu.ops import cpp
from lda_aqu.ops.cpp import library
from lda_aqu.ops.plain import attention as plain
from lda_aqu.ops.plain import offset_network as plain_offset_network
from lda_aqu.ops.plain import projection as plain_projection
from tensors import relative_error

pytestmark = [pytest.mark.cpu, pytest.mark.usefixtures("compiled_kernels")]
OUT = (11, 71)  # more rows, and more columns, than a block of the kernels has; odd strips


def forward(module, *inputs) -> torch.Tensor:
    (output,) = module.local_deformable_attention(*inputs)
    return output


def backward(module, grad_output: torch.Tensor, *inputs) -> list[torch.Tensor]:
    return module.local_deformable_attention_backward([grad_output], *inputs)


def run(inputs: tuple, grad_output: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (forward(cpp.attention, *inputs), *backward(cpp.attention, grad_output, *inputs))


def wide_inputs(dtype=torch.float32, size=(9, 14), out=OUT, spread=6.0) -> tuple:
    """The channels of a real pyramid, which fill registers and leave tails; heads cut groups."""
    torch.manual_seed(0)
    (h, w), (y, x) = size, out
    shapes = [(2, 60, y, x), (2, 60, h, w), (2, 156, h, w), (2, 3, 9, 2, y, x), (2, 9, 30)]
    query, key, value, offsets, bias = (torch.randn(s, dtype=torch.float64) for s in shapes)
    return (*(t.to(dtype) for t in (query, key, value, offsets * spread, bias)), 2)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_every_instruction_set_agrees_with_plain_pytorch(instruction_set, dtype, tolerance):
    assert cpp.instruction_set() == instruction_set
    inputs = wide_inputs(dtype)
    grad = torch.randn(2, 156, *OUT, dtype=dtype)
    exact = tuple(i.double() if torch.is_tensor(i) else i for i in inputs)
    expected = (forward(plain, *exact), *backward(plain, grad.double(), *exact))
    for actual, wanted in zip(run(inputs, grad), expected, strict=True):
        assert relative_error(actual, wanted) < tolerance


@pytest.mark.parametrize("instruction_set", ["generic"], indirect=True)
def test_instruction_sets_that_are_not_there_raise(instruction_set):
    with pytest.raises(ValueError, match="'neon'"):
        cpp.use_instruction_set("neon")
    if platform.machine() == "x86_64":
        assert cpp.instruction_set() == "generic"


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
    expected = (forward(plain, *inputs), *backward(plain, grad, *inputs))
    for actual, wanted in zip(run(inputs, grad), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("depth, channels", [(24, 300), (420, 6)])
def test_more_channels_than_are_scattered_at_once(depth, channels):
    torch.manual_seed(0)
    shapes = [(1, depth, *OUT), (1, depth, 9, 14), (1, channels, 9, 14), (1, 1, 9, 2, *OUT)]
    inputs = (*(torch.randn(s, dtype=torch.float64) for s in shapes), None, 2)
    grad = torch.randn(1, channels, *OUT, dtype=torch.float64)
    expected = backward(plain, grad, *inputs)
    for actual, wanted in zip(backward(cpp.attention, grad, *inputs), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("far", [torch.nan, torch.inf, -torch.inf, 1e30, -1e30])
def test_what_is_nowhere_passes_nothing_on(far):
    query, key, value, offsets, bias, heads = wide_inputs(spread=0.5)
    grad = torch.randn(2, 156, *OUT)
    clean = backward(cpp.attention, grad, query, key, value, offsets, bias, heads)
    offsets[:, :, :, :, :2, :6] = far
    grads = backward(cpp.attention, grad, query, key, value, offsets, bias, heads)
    for actual, wanted in zip(grads[1:3], clean[1:3], strict=True):
        assert actual[..., 5:, :].equal(wanted[..., 5:, :])
        assert actual[..., 8:].equal(wanted[..., 8:])


@pytest.mark.parametrize("height, width", [(8, 8192), (8192, 8)])
def test_positions_far_from_the_origin(height, width):
    """They are as exact in float32 as near ones."""
    torch.manual_seed(0)
    shapes = [(1, 4, height, width), *2 * [(1, 4, height // 2, width // 2)]]
    inputs = [torch.randn(s) for s in (*shapes, (1, 2, 9, 2, height, width))]
    inputs = [*inputs[:3], 3 * inputs[3], None]
    output = forward(cpp.attention, *inputs, 1)
    exact = [i if i is None else i.double() for i in inputs]
    assert relative_error(output, forward(plain, *exact, 1)) < 1e-5


def test_more_pixels_than_can_be_numbered_raise():
    query, offsets = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 2, 2, 2)
    huge = torch.zeros(1, 1, 1, 1).expand(1, 1, 2**16, 2**15)
    with pytest.raises(RuntimeError, match=r"2\^31 pixels"):
        forward(cpp.attention, query, huge, huge, offsets, None, 1)


def test_an_empty_batch():
    inputs = tuple(t[:0] if torch.is_tensor(t) and t.dim() > 3 else t for t in wide_inputs())
    assert forward(cpp.attention, *inputs).shape == (0, 156, *OUT)
    *grads, grad_bias = backward(cpp.attention, torch.zeros(0, 156, *OUT), *inputs)
    assert [g.shape[0] for g in grads] == [0] * 4 and grad_bias.eq(0).all()


@pytest.mark.parametrize("size, out, depth", [((9, 0), OUT, 6), ((0, 9), OUT, 6), ((9, 9), OUT, 0)])
def test_nothing_to_attend_to_raises(size, out, depth):
    query, key = torch.zeros(1, depth, *out), torch.zeros(1, depth, *size)
    value, offsets = torch.zeros(1, 4, *size), torch.zeros(1, 2, 9, 2, *out)
    inputs = (query, key, value, offsets, None, 2)
    with pytest.raises(RuntimeError, match="expected (query|key) with elements"):
        forward(cpp.attention, *inputs)
    with pytest.raises(RuntimeError, match="expected (query|key) with elements"):
        backward(cpp.attention, torch.zeros(1, 4, *out), *inputs)


@pytest.mark.parametrize("size, depth, target", [((5, 7), 0, None), ((5, 0), 4, (5, 7))])
def test_no_query_to_predict_offsets_from_raises(size, depth, target):
    parameters = [torch.zeros(s) for s in ((depth // 2, 1, 3, 3), (depth // 2,), (depth // 2,))]
    parameters += [torch.zeros(18, depth // 2, 3, 3), torch.zeros(18)]
    out = target or size
    query, offsets = torch.zeros(1, depth, *size), torch.zeros(1, 2, 9, 2, *out)
    with pytest.raises(RuntimeError, match=r"with elements, got \("):
        cpp.offset_network.predict_offsets(query, *parameters, 2, 11.0, target)
    grads = [offsets, torch.zeros(1, depth, *out)][: 2 if target else 1]
    with pytest.raises(RuntimeError, match=r"with elements, got \("):
        seen = torch.zeros(1, depth, *out)
        cpp.offset_network.predict_offsets_backward(
            grads, offsets, seen, *parameters, 2, 11.0, size if target else None
        )


@pytest.mark.parametrize("shape", [(0, 4, 5, 7), (1, 4, 0, 7), (1, 4, 5, 0)])
def test_maps_without_pixels_have_empty_results(shape):
    query, value = torch.zeros(shape), torch.zeros(shape[0], 4, 3, 3)
    offsets, bias = torch.zeros(shape[0], 2, 9, 2, *shape[2:]), torch.zeros(2, 9, 2)
    inputs = (query, value, value, offsets, bias, 2)
    assert forward(cpp.attention, *inputs).shape == shape
    assert all(g.eq(0).all() for g in backward(cpp.attention, query, *inputs))

    parameters = [torch.zeros(s) for s in ((2, 1, 3, 3), (2,), (2,), (18, 2, 3, 3), (18,))]
    assert cpp.offset_network.predict_offsets(query, *parameters, 2, 11.0, None)[0].numel() == 0
    source = (5, 7)
    grads = cpp.offset_network.predict_offsets_backward(
        [offsets, query], offsets, query, *parameters, 2, 11.0, source
    )
    assert all(g.eq(0).all() for g in grads)

    weights = (torch.ones(4), torch.zeros(4), torch.zeros(3, 4, 1, 1))
    projection = (query, *weights, [3], torch.float32)
    (projected,) = cpp.projection.project_normalized(*projection)
    assert projected.shape == (shape[0], 3, *shape[2:])
    grads = cpp.projection.project_normalized_backward([projected], *projection)
    assert all(g.eq(0).all() for g in grads)


def random_problem(seed: int):
    """Functions and arguments of all operators for odd shapes, and the tolerance of the dtype."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    dtype, tolerance = rng.choice(
        [(torch.float64, 1e-9), (torch.float32, 1e-3), (torch.float32, 1e-3), (torch.float16, 5e-2)]
    )
    batch, groups, heads, kernel = (
        rng.choice(c) for c in ((1, 2), (1, 2, 3), (1, 2, 3), (1, 3, 5, 7))
    )
    depth, channels = 6 * rng.choice((1, 3)), 6 * rng.choice((1, 2, 7))
    size, out = (
        rng.choice([(1, rng.randint(1, long)), (rng.randint(1, long), 1), (rng.randint(2, 9), 17)])
        for long in (20, 70)
    )

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        drawn = (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
        formats = (torch.contiguous_format, torch.channels_last)
        return drawn.contiguous(memory_format=rng.choice(formats)) if len(shape) == 4 else drawn

    key, value = draw(batch, depth, *size), draw(batch, channels, *size)
    bias = draw(heads, kernel**2, depth // heads) if rng.random() < 0.7 else None
    offsets = draw(batch, groups, kernel**2, 2, *out, scale=3.0)
    attention = (draw(batch, depth, *out), key, value, offsets, bias, heads)
    window, c = rng.choice((1, 3, 5)), depth // groups
    network = (draw(c, 1, 3, 3), draw(c), draw(c), draw(18, c, window, window, scale=0.1), draw(18))
    norm = (value, draw(channels), draw(channels), draw(4, channels, 1, 1))

    def both(modules: tuple, convert) -> list[torch.Tensor]:
        """Outputs and gradients; the gradients of outputs are the outputs themselves."""
        attend, predict, project = modules
        inputs = [convert(i) for i in attention]
        output = forward(attend, *inputs)
        results = [output, *backward(attend, output, *inputs)]
        weights = [convert(w) for w in network]
        for query, target in ((inputs[0], None), (inputs[1], out)):
            settings = (*weights, groups, 11.0)
            outputs = predict.predict_offsets(query, *settings, target)
            seen, back = (outputs[1], size) if target else (query, None)
            results += outputs
            results += predict.predict_offsets_backward(outputs, outputs[0], seen, *settings, back)
        parameters = (*(convert(t) for t in norm), [3, 1], convert(value).dtype)
        outputs = project.project_normalized(*parameters)
        results += project.project_normalized_backward(outputs, *parameters)
        return [*results, *outputs]

    return both, tolerance


def test_random_problems_agree_with_plain_pytorch(instruction_set):
    """A sweep of all operators; `make sanitize` runs it where accesses out of bounds are seen."""
    exactly = (plain, plain_offset_network, plain_projection)
    for seed in range(20 if instruction_set == "avx512" else 10):
        both, tolerance = random_problem(seed)
        results = both((cpp.attention, cpp.offset_network, cpp.projection), lambda t: t)
        expected = both(exactly, lambda t: t.double() if torch.is_tensor(t) else t)
        for i, (actual, wanted) in enumerate(zip(results, expected, strict=True)):
            error = (actual.double() - wanted).abs().sum() / wanted.abs().sum().clamp(min=1)
            assert error <= tolerance, (seed, i, error)


@pytest.fixture
def reason(monkeypatch, tmp_path):
    """Why a library with these bytes, or compiled from this C, is not used."""

    def reason_of(content: bytes | str) -> str:
        path = (
            tmp_path / f"{len(list(tmp_path.iterdir()))}_cpp.so"
        )  # never the name of a loaded one
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            (tmp_path / "library.c").write_text(content)
            subprocess.run(["gcc", "-shared", "-o", path, tmp_path / "library.c"], check=True)
        monkeypatch.setattr(library, "LIBRARY", path)
        library._library.cache_clear()
        return cpp.unavailable(torch.device("cpu"))

    yield reason_of
    monkeypatch.undo()
    library._library.cache_clear()


@pytest.mark.parametrize("part", [0.0, 0.00001, 0.001, 0.05, 0.1])
def test_a_library_that_was_cut_short_is_not_loaded(part, reason):
    content = library.LIBRARY.read_bytes()
    assert "_cpp.so" in reason(content[: int(part * len(content))])


def test_a_library_of_other_sources_is_not_used(reason):
    loaded = ctypes.CDLL(str(library.LIBRARY))
    loaded.lda_aqu_sources.restype = ctypes.c_char_p
    functions = """
        const char* lda_aqu_sources() {{ return "{}"; }}
        long lda_aqu_problem_size(const char* name) {{
            return *name == 'a' ? {} : *name == 'o' ? {} : {};
        }}
        const char* lda_aqu_instruction_set() {{ return ""; }}
        int lda_aqu_use_instruction_set(const char* name) {{ return 0; }}
        void lda_aqu_advise_huge_pages(void* memory, long size) {{}}
    """
    sources = loaded.lda_aqu_sources().decode()
    sizes = [ctypes.sizeof(problem) for problem in library.Problem.__subclasses__()]
    assert reason(functions.format(sources, *sizes)) == ""
    assert "is not of this version" in reason(functions.format("0" * 64, *sizes))
    assert "is not of this version" in reason(functions.format(sources, *sizes[:2], sizes[2] + 8))
    assert "is not of this version" in reason("int other() { return 0; }")
