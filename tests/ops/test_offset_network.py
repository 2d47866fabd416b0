import numpy as np
import oracle
import pytest
import torch
from lda_aqu.ops import cpp, predict_offsets
from torch.nn import functional as F

OP = torch.ops.lda_aqu.predict_offsets.default
CPU = torch.device("cpu")
needs_cpp = pytest.mark.skipif(bool(cpp.unavailable(CPU)), reason="no compiled kernels")

# batch, groups, channels of a group, height, width, k_e, k_u, offset range
SHAPES = [
    (1, 2, 4, 5, 7, 3, 3, 11.0),
    (2, 1, 3, 1, 1, 1, 1, 2.0),
    (1, 1, 5, 1, 17, 5, 3, 3.0),
    (1, 4, 3, 6, 1, 3, 1, 0.5),
    (2, 2, 5, 3, 16, 3, 5, 0.0),
    (1, 2, 20, 37, 33, 5, 1, 5.0),  # more rows than a band
    (1, 1, 7, 65, 15, 1, 5, 3.0),
    (1, 1, 8, 33, 9, 7, 3, 4.0),
    (1, 2, 20, 35, 33, 3, 3, 5.0),
    # every remainder of the tiles of rows
    *((1, 1, 3, height, 18, 3, 1, 2.0) for height in (1, 2, 4, 7, 8, 9, 33, 66)),
]
LAYOUTS = ["contiguous", "channels_last", "cut", "transposed"]


def draw(shape: tuple, dtype=torch.float64, requires_grad: bool = False) -> tuple:
    """Arguments of the operator but for the backend."""
    batch, groups, channels, height, width, kernel, window, offset_range = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int, scale: float = 1.0) -> torch.Tensor:
        drawn = scale * torch.randn(size, generator=generator, dtype=torch.float64)
        return drawn.to(dtype).requires_grad_(requires_grad)

    outputs = 2 * window**2
    return (
        normal(batch, groups * channels, height, width),
        normal(channels, 1, 3, 3, scale=0.5),
        normal(channels),
        normal(channels),
        normal(outputs, channels, kernel, kernel, scale=(kernel * kernel * channels) ** -0.5),
        normal(outputs),
        groups,
        offset_range,
    )


def compose(query, depthwise, weight, bias, conv_weight, conv_bias, groups, offset_range):
    """The same in functions of torch.nn, differentiable."""
    batch, depth, *size = query.shape
    channels = depth // groups
    x = query.reshape(batch * groups, channels, *size)
    x = F.conv2d(x, depthwise, padding=1, groups=channels).permute(0, 2, 3, 1)
    x = F.gelu(F.layer_norm(x, (channels,), weight, bias, 1e-5)).permute(0, 3, 1, 2)
    x = F.conv2d(x, conv_weight, conv_bias, padding=conv_weight.shape[-1] // 2)
    return (offset_range * torch.tanh(x)).view(batch, groups, len(conv_bias) // 2, 2, *size)


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    return {
        "contiguous": lambda: x,
        "channels_last": lambda: x.contiguous(memory_format=torch.channels_last),
        "cut": lambda: torch.cat([x, x], 3)[..., : x.shape[3]],
        "transposed": lambda: x.mT.contiguous().mT,
    }[layout]()


def run(inputs: tuple, backend: str, grad: torch.Tensor) -> list[torch.Tensor]:
    """The offsets, and the gradients of all tensors."""
    tensors = [i.detach().requires_grad_() for i in inputs[:6]]
    offsets = predict_offsets(*tensors, *inputs[6:], backend)
    return [offsets.detach(), *torch.autograd.grad(offsets, tensors, grad)]


def expected_of(inputs: tuple) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A gradient of the offsets; the offsets, and the gradients of all tensors; in float64."""
    tensors = [i.double().requires_grad_() for i in inputs[:6]]
    offsets = compose(*tensors, *inputs[6:])
    grad = torch.randn(offsets.shape, generator=torch.Generator().manual_seed(1)).double()
    return grad, [offsets.detach(), *torch.autograd.grad(offsets, tensors, grad)]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    largest = expected.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return ((actual.double() - expected).abs().max() / largest).item()


def test_matches_the_loops(backend):
    query, *parameters, groups, offset_range = inputs = draw((2, 2, 3, 4, 5, 3, 3, 2.0))
    depthwise, weight, bias, conv_weight, conv_bias = (p.numpy() for p in parameters)
    offsets = predict_offsets(*inputs, backend)
    for n, group in np.ndindex(2, groups):
        x = oracle.convolve(query[n].numpy()[3 * group : 3 * group + 3], depthwise, True)
        x = torch.from_numpy(oracle.layer_norm(x, weight, bias))
        hidden = x * (1 + torch.erf(x / 2**0.5)) / 2
        x = oracle.convolve(hidden.numpy(), conv_weight) + conv_bias[:, None, None]
        expected = torch.from_numpy(offset_range * np.tanh(x)).view(9, 2, 4, 5)
        torch.testing.assert_close(offsets[n, group], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_composition(shape, layout, backend):
    inputs = draw(shape)
    grad, expected = expected_of(inputs)
    inputs = (laid_out(inputs[0], layout), *inputs[1:])
    for actual, wanted in zip(run(inputs, backend, grad), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


@needs_cpp
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("instruction_set", ("generic", "avx2", "avx512"), indirect=True)
def test_every_instruction_set_in_float32(instruction_set, shape):
    assert cpp.instruction_set() == instruction_set
    inputs = draw(shape, torch.float32)
    grad, expected = expected_of(inputs)
    for actual, wanted in zip(run(inputs, "cpp", grad.float()), expected, strict=True):
        assert relative_error(actual, wanted) < 1e-5


def chosen(shape: tuple, **changes: torch.Tensor) -> tuple:
    """Arguments of a network that hands one input of its GELU, or tanh, through."""
    inputs = draw(shape, torch.float32)
    names = ("query", "depthwise", "norm_weight", "norm_bias", "conv_weight", "conv_bias")
    return (*(changes.get(n, i) for n, i in zip(names, inputs, strict=False)), *inputs[6:])


@needs_cpp
@pytest.mark.parametrize("instruction_set", ("generic", "avx2", "avx512"), indirect=True)
def test_gelu_and_tanh_everywhere(instruction_set):
    """Over the whole range of their arguments, which a norm's bias, or the convolution's, give."""
    shape, zero = (1, 1, 4, 1, 1, 1, 5, 1.0), torch.zeros
    for first in torch.linspace(-12, 12, 101):
        values = first + torch.linspace(0, 0.3, 4)
        reading = torch.cat([torch.eye(4), zero(46, 4)]).view(50, 4, 1, 1) / 64
        inputs = chosen(shape, norm_weight=zero(4), norm_bias=values, conv_weight=reading)
        offsets = predict_offsets(*inputs[:5], zero(50), *inputs[6:], "cpp").flatten()[:4]
        gelu = 64 * torch.atanh(offsets.double())
        torch.testing.assert_close(gelu, F.gelu(values.double()), rtol=3e-6, atol=2e-6)
        inputs = chosen(shape, conv_weight=zero(50, 4, 1, 1), conv_bias=first * torch.ones(50))
        offsets = predict_offsets(*inputs, "cpp").flatten()
        assert relative_error(offsets, torch.tanh(first.double()).expand(50)) < 3e-7


def test_gradients(backend):
    inputs = draw((1, 2, 4, 3, 4, 3, 3, 2.0), requires_grad=True)
    assert torch.autograd.gradcheck(predict_offsets, (*inputs, backend), fast_mode=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout, backend):
    query, *others = draw((2, 2, 4, 3, 5, 3, 3, 2.0), torch.float32, requires_grad=True)
    query = laid_out(query.detach(), layout).requires_grad_()
    torch.library.opcheck(OP, (query, *others, backend))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, backend):
    """The offsets of half-precision queries are in float32, their gradients are not."""
    inputs = draw((1, 2, 4, 5, 7, 3, 3, 2.0), dtype)
    grad, expected = expected_of(inputs)
    offsets, *grads = run(inputs, backend, grad.float())
    assert offsets.dtype == torch.float32
    tolerance = 1e-5 if backend == "cpp" else 8 * torch.finfo(dtype).eps
    assert relative_error(offsets, expected[0]) < tolerance
    for actual, wanted in zip(grads, expected[1:], strict=True):
        assert actual.dtype == dtype
        assert relative_error(actual, wanted) < 8 * torch.finfo(dtype).eps


def test_autocast(backend):
    inputs = draw((1, 2, 4, 5, 7, 3, 3, 2.0), torch.float32)
    grad, expected = expected_of(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        offsets, *grads = run(inputs, backend, grad.float())
    assert {t.dtype for t in (offsets, *grads)} == {torch.float32}
    for actual, wanted in zip((offsets, *grads), expected, strict=True):
        assert 1e-5 < relative_error(actual, wanted) < 0.05


def test_an_empty_batch(backend):
    inputs = draw((0, 2, 4, 5, 7, 3, 3, 2.0))
    offsets, grad_query, *grads = run(inputs, backend, torch.zeros(0, 2, 9, 2, 5, 7).double())
    assert offsets.shape == (0, 2, 9, 2, 5, 7) and grad_query.shape == (0, 8, 5, 7)
    assert all(grad.eq(0).all() for grad in grads)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("y, x", [(0, 0), (6, 20), (17, 11), (31, 1), (36, 5), (39, 19)])
def test_what_is_not_finite_stays_where_it_is_seen(y, x, bad, backend):
    query, *others = draw((1, 2, 4, 40, 21, 3, 3, 2.0), torch.float32)

    def within(reach: int) -> torch.Tensor:
        rows, columns = torch.arange(40)[:, None] - y, torch.arange(21) - x
        return (rows.abs() <= reach) & (columns.abs() <= reach)

    grad = torch.ones(1, 2, 9, 2, 40, 21)
    clean = run((query, *others), backend, grad)
    query[0, 0, y, x] = bad
    offsets, grad_query, *_ = run((query, *others), backend, grad)
    assert offsets[0, 0].isnan().eq(within(2)).all()
    torch.testing.assert_close(offsets[0, 0, ..., ~within(2)], clean[0][0, 0, ..., ~within(2)])
    torch.testing.assert_close(offsets[0, 1], clean[0][0, 1])
    assert grad_query[0, :4].isfinite().eq(~within(4)).all()
    torch.testing.assert_close(grad_query[0, :4, ~within(4)], clean[1][0, :4, ~within(4)])
    torch.testing.assert_close(grad_query[0, 4:], clean[1][0, 4:])


@needs_cpp
def test_bits_do_not_depend_on_the_threads():
    inputs, threads = draw((2, 2, 12, 70, 37, 3, 3, 2.0), torch.float32), torch.get_num_threads()
    grad = torch.randn(2, 2, 9, 2, 70, 37)
    try:
        torch.set_num_threads(1)
        expected = run(inputs, "cpp", grad)
        for count in (2, 3, 16):
            torch.set_num_threads(count)
            for actual, wanted in zip(run(inputs, "cpp", grad), expected, strict=True):
                assert actual.equal(wanted)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", [3, 5])
def test_writes_all_that_it_allocates(kernel, layout, backend):
    inputs = draw((2, 2, 5, 34, 19, kernel, 3, 2.0), torch.float32)
    inputs = (laid_out(inputs[0], layout), *inputs[1:])
    grad = torch.randn(2, 2, 9, 2, 34, 19)
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns with NaN
    try:
        results = run(inputs, backend, grad)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(result.isfinite().all() for result in results)


def test_saves_its_inputs_and_its_result_alone(backend):
    inputs = draw((1, 2, 4, 5, 7, 3, 3, 2.0), torch.float32, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()), id):
        offsets = predict_offsets(*inputs, backend)
    assert set(saved) <= {t.data_ptr() for t in (offsets, *inputs[:6])}


def test_compiles_in_one_graph():
    inputs = draw((1, 2, 4, 5, 7, 3, 3, 2.0), torch.float32, requires_grad=True)
    compiled = torch.compile(predict_offsets, fullgraph=True, backend="aot_eager")
    offsets = compiled(*inputs)
    torch.testing.assert_close(offsets, predict_offsets(*inputs))
    offsets.sum().backward()
    assert inputs[0].grad.isfinite().all()


def test_exports_as_one_operator():
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return predict_offsets(*tensors, 2, 2.0)

    tensors = draw((1, 2, 4, 5, 7, 3, 3, 2.0), torch.float32)[:6]
    program = torch.export.export(Module(), tensors)
    assert [n.target for n in program.graph.nodes if n.op == "call_function"] == [OP]
    torch.testing.assert_close(program.module()(*tensors), Module()(*tensors))


@pytest.mark.parametrize(
    "index, change, message",
    [
        (0, torch.zeros(1, 7, 5, 5), "query of 2 groups"),
        (0, torch.zeros(8, 5, 5), "4-d query"),
        (1, torch.zeros(4, 1, 5, 5), r"a parameter \(4, 1, 3, 3\)"),
        (2, torch.zeros(3), r"a parameter \(4,\), got \(3,\)"),
        (4, torch.zeros(18, 4, 2, 2), "odd convolution"),
        (4, torch.zeros(8, 4, 3, 3), "2 k² outputs"),
        (5, torch.zeros(17), r"a parameter \(18,\)"),
        (0, torch.zeros(1, 8, 5, 5, dtype=torch.int64), "floating-point"),
    ],
)
def test_shapes_that_do_not_fit_raise(index, change, message):
    inputs = list(draw((1, 2, 4, 5, 5, 3, 3, 2.0), torch.float32))
    inputs[index] = change
    with pytest.raises(RuntimeError, match=message):
        predict_offsets(*inputs)
