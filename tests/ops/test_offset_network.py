import operator
from collections.abc import Iterator

import numpy as np
import oracle
import pytest
import torch
from gradients import gradcheck
from lda_aqu.ops import cpp, predict_offsets
from random_tensors import normals
from tensors import LAYOUTS, laid_out, relative_error
from torch.nn import functional as F

OP = torch.ops.lda_aqu.predict_offsets.default

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
    *((1, 1, 6, height, 18, 3, 1, 2.0) for height in (1, 2, 4, 7, 8, 9, 33, 66)),
]
# From the size that the network sees to that of the query which is resized to it; None: it is not.
RESIZES = {
    "not": lambda height, width: None,
    "halved": lambda height, width: ((height + 1) // 2, (width + 1) // 2),
    "wider": lambda height, width: (3 * height + 1, 2 * width + 3),
    "mixed": lambda height, width: (1, width + 5),
    "pixel": lambda height, width: (1, 1),
    "same": lambda height, width: (height, width),
}


def draw(
    shape: tuple, dtype=torch.float64, requires_grad: bool = False, resized: str = "not"
) -> tuple:
    """Arguments of the operator but for the size and the backend."""
    batch, groups, channels, height, width, kernel, window, offset_range = shape
    height, width = RESIZES[resized](height, width) or (height, width)
    draw_normal = normals(0)

    def normal(*size: int, scale: float = 1.0) -> torch.Tensor:
        drawn = scale * draw_normal(*size, dtype=torch.float64)
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


def compose(
    query, depthwise, weight, bias, conv_weight, conv_bias, groups, offset_range, size=None
):
    """The same in functions of torch.nn, differentiable: offsets, and the query if resized."""
    if size:
        query = F.interpolate(query, size, mode="bilinear", align_corners=True)
    batch, depth, *output_size = query.shape
    channels = depth // groups
    x = query.reshape(batch * groups, channels, *output_size)
    x = F.conv2d(x, depthwise, padding=1, groups=channels).permute(0, 2, 3, 1)
    x = F.gelu(F.layer_norm(x, (channels,), weight, bias, 1e-5)).permute(0, 3, 1, 2)
    x = F.conv2d(x, conv_weight, conv_bias, padding=conv_weight.shape[-1] // 2)
    x = (offset_range * torch.tanh(x)).view(batch, groups, len(conv_bias) // 2, 2, *output_size)
    return [x, query] if size else [x]


def predict(inputs: tuple, backend: str, size: tuple | None) -> list[torch.Tensor]:
    """The offsets and, if there is a size, the query, resized to it."""
    offsets, query = predict_offsets(*inputs, size, backend)
    return [offsets] if size is None else [offsets, query]


def run(
    inputs: tuple, backend: str, grads: list[torch.Tensor], size: tuple | None = None
) -> list[torch.Tensor]:
    """The results, and the gradients of all tensors."""
    tensors = [i.detach().requires_grad_() for i in inputs[:6]]
    results = predict((*tensors, *inputs[6:]), backend, size)
    return [*(r.detach() for r in results), *torch.autograd.grad(results, tensors, grads)]


def expected_of(
    inputs: tuple, size: tuple | None = None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gradients of the results; the results, and the gradients of all tensors; in float64."""
    tensors = [i.double().requires_grad_() for i in inputs[:6]]
    results = compose(*tensors, *inputs[6:], size)
    normal = normals(1)
    grads = [normal(*r.shape).double() for r in results]
    wanted = torch.autograd.grad(results, tensors, grads)
    return grads, [*(r.detach() for r in results), *wanted]


def size_of(shape: tuple, resized: str) -> tuple[int, int] | None:
    """To which the query is resized."""
    return None if resized == "not" else shape[3:5]


def test_matches_the_loops(backend):
    query, *parameters, groups, offset_range = inputs = draw((2, 2, 3, 4, 5, 3, 3, 2.0))
    depthwise, weight, bias, conv_weight, conv_bias = (p.numpy(force=True) for p in parameters)
    offsets, _ = predict_offsets(*inputs, None, backend)
    for n, group in np.ndindex(2, groups):
        x = oracle.convolve(query[n].numpy(force=True)[3 * group : 3 * group + 3], depthwise, True)
        x = torch.as_tensor(oracle.layer_norm(x, weight, bias))
        hidden = x * (1 + torch.erf(x / 2**0.5)) / 2
        x = oracle.convolve(hidden.numpy(force=True), conv_weight) + conv_bias[:, None, None]
        expected = torch.as_tensor(offset_range * np.tanh(x)).view(9, 2, 4, 5)
        torch.testing.assert_close(offsets[n, group], expected, rtol=1e-10, atol=1e-12)


def check_composition(inputs: tuple, layout: str, backend: str, size: tuple | None) -> None:
    grads, expected = expected_of(inputs, size)
    inputs = (laid_out(inputs[0], layout), *inputs[1:])
    for actual, wanted in zip(run(inputs, backend, grads, size), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_composition(shape, layout, backend):
    check_composition(draw(shape), layout, backend, None)


@pytest.mark.parametrize("resized", [name for name in RESIZES if name != "not"])
@pytest.mark.parametrize("shape", SHAPES)
def test_resizes_the_query(shape, resized, backend):
    check_composition(draw(shape, resized=resized), "contiguous", backend, shape[3:5])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resizes_any_layout(layout, backend):
    shape = (2, 2, 5, 34, 19, 5, 3, 2.0)
    check_composition(draw(shape, resized="halved"), layout, backend, shape[3:5])


@pytest.mark.cpu
@pytest.mark.parametrize("resized", ["not", "halved"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_instruction_set_in_float32(instruction_set, shape, resized):
    assert cpp.instruction_set() == instruction_set
    inputs, size = draw(shape, torch.float32, resized=resized), size_of(shape, resized)
    grads, expected = expected_of(inputs, size)
    grads = [grad.float() for grad in grads]
    for actual, wanted in zip(run(inputs, "cpp", grads, size), expected, strict=True):
        assert relative_error(actual, wanted) < 1e-5


@pytest.mark.cpu
def test_positions_in_wide_maps(compiled_kernels):
    """In float32 as exact as pixels are: positions are not rounded at all."""
    shape = (1, 1, 4, 3, 4001, 1, 1, 1.0)
    inputs, size = draw(shape, torch.float32, resized="halved"), shape[3:5]
    expected = compose(*(i.double() for i in inputs[:6]), *inputs[6:], size)[1]
    assert relative_error(predict(inputs, "cpp", size)[1], expected) < 2e-7


@pytest.mark.cpu
def test_positions_that_are_rounded_over_a_pixel(compiled_kernels):
    """Every 31st row is 501 rows of the query on, but for rounding, which puts row 992 before."""
    inputs, size = draw((1, 1, 2, 501 * 40 + 1, 1, 1, 1, 1.0)), (31 * 40 + 1, 1)
    grads, expected = expected_of(inputs, size)
    for actual, wanted in zip(run(inputs, "cpp", grads, size), expected, strict=True):
        assert relative_error(actual, wanted) < 1e-8


def chosen(shape: tuple, **changes: torch.Tensor) -> tuple:
    """Arguments of a network that hands one input of its GELU, or tanh, through."""
    inputs = draw(shape, torch.float32)
    names = ("query", "depthwise", "norm_weight", "norm_bias", "conv_weight", "conv_bias")
    return (*(changes.get(n, i) for n, i in zip(names, inputs, strict=False)), *inputs[6:])


@pytest.mark.cpu
def test_gelu_and_tanh_everywhere(instruction_set):
    """Over the whole range of their arguments, which a norm's bias, or the convolution's, give."""
    shape, zero = (1, 1, 4, 1, 1, 1, 5, 1.0), torch.zeros
    for first in torch.linspace(-12, 12, 101):
        values = first + torch.linspace(0, 0.3, 4)
        reading = torch.cat([torch.eye(4), zero(46, 4)]).view(50, 4, 1, 1) / 64
        inputs = chosen(shape, norm_weight=zero(4), norm_bias=values, conv_weight=reading)
        offsets = predict_offsets(*inputs[:5], zero(50), *inputs[6:], None, "cpp")[0].flatten()[:4]
        gelu = 64 * torch.atanh(offsets.double())
        torch.testing.assert_close(gelu, F.gelu(values.double()), rtol=3e-6, atol=2e-6)
        inputs = chosen(shape, conv_weight=zero(50, 4, 1, 1), conv_bias=first * torch.ones(50))
        offsets = predict_offsets(*inputs, None, "cpp")[0].flatten()
        assert relative_error(offsets, torch.tanh(first.double()).expand(50)) < 3e-7


@pytest.mark.parametrize("resized", ["not", "halved"])
def test_gradients(resized, backend):
    shape = (1, 2, 4, 3, 4, 3, 3, 2.0)
    inputs, size = draw(shape, requires_grad=True, resized=resized), size_of(shape, resized)

    def apply(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(predict((*tensors, *inputs[6:]), backend, size))

    assert gradcheck(apply, inputs[:6])


@pytest.mark.parametrize(
    "layout, resized",
    [
        ("contiguous", "not"),
        ("channels_last", "not"),
        ("cut", "halved"),
        ("channels_last", "halved"),
        ("transposed", "same"),
    ],
)
def test_opcheck(layout, resized, backend):
    shape = (2, 2, 4, 3, 5, 3, 3, 2.0)
    query, *others = draw(shape, torch.float32, requires_grad=True, resized=resized)
    query = laid_out(query.detach(), layout).requires_grad_()
    # Of others, what may differ is where results lie.
    more = {} if layout in LAYOUTS[:2] else {"test_utils": "test_faketensor"}
    torch.library.opcheck(OP, (query, *others, size_of(shape, resized), backend), **more)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, backend):
    """The offsets of half-precision queries are in float32, their gradients are not."""
    inputs = draw((1, 2, 4, 5, 7, 3, 3, 2.0), dtype)
    grads, expected = expected_of(inputs)
    offsets, *grads = run(inputs, backend, [grad.float() for grad in grads])
    assert offsets.dtype == torch.float32
    tolerance = 1e-5 if backend == "cpp" else 8 * torch.finfo(dtype).eps
    assert relative_error(offsets, expected[0]) < tolerance
    for actual, wanted in zip(grads, expected[1:], strict=True):
        assert actual.dtype == dtype
        assert relative_error(actual, wanted) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_resizes_half_precision(dtype, backend):
    """The network sees the query as it is returned, rounded."""
    shape = (1, 2, 4, 37, 7, 3, 3, 2.0)
    inputs, size = draw(shape, dtype, resized="halved"), shape[3:5]
    grads, expected = expected_of(inputs, size)
    grads = [grads[0].float(), grads[1].to(dtype)]
    offsets, query, *grads = run(inputs, backend, grads, size)
    assert offsets.dtype == torch.float32
    assert relative_error(query, expected[1]) < torch.finfo(dtype).eps
    assert offsets.equal(predict_offsets(query, *inputs[1:], None, backend)[0])
    for actual, wanted in zip((query, *grads), expected[1:], strict=True):
        assert actual.dtype == dtype
        assert relative_error(actual, wanted) < 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("resized", ["not", "halved"])
def test_autocast(resized, device, backend):
    shape = (1, 2, 4, 5, 7, 3, 3, 2.0)
    inputs, size = draw(shape, torch.float32, resized=resized), size_of(shape, resized)
    grads, expected = expected_of(inputs, size)
    dtypes = [torch.float32, torch.bfloat16]
    with torch.autocast(device.type, torch.bfloat16):
        grads = [g.to(dtype) for g, dtype in zip(grads, dtypes, strict=False)]
        results = run(inputs, backend, grads, size)
    assert [r.dtype for r in results] == [*dtypes[: len(grads)], *[torch.float32] * 6]
    for actual, wanted in zip(results, expected, strict=True):
        assert 1e-5 < relative_error(actual, wanted) < 0.05


@pytest.fixture
def pixel_by_pixel() -> Iterator[None]:
    """Convolutions without cuDNN, which may convolve tiles, all of which then see a pixel."""
    with torch.backends.cudnn.flags(False, allow_tf32=False):
        yield


@pytest.mark.parametrize("resized", ["not", "halved"])
def test_an_empty_batch(resized, backend):
    shape = (0, 2, 4, 5, 7, 3, 3, 2.0)
    inputs, size = draw(shape, resized=resized), size_of(shape, resized)
    grads, expected = expected_of(inputs, size)
    for actual, wanted in zip(run(inputs, backend, grads, size), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("y, x", [(0, 0), (6, 20), (17, 11), (31, 1), (36, 5), (39, 19)])
def test_what_is_not_finite_stays_where_it_is_seen(y, x, bad, backend, pixel_by_pixel):
    query, *others = draw((1, 2, 4, 40, 21, 3, 3, 2.0), torch.float32)

    def within(reach: int) -> torch.Tensor:
        rows, columns = torch.arange(40)[:, None] - y, torch.arange(21) - x
        return (rows.abs() <= reach) & (columns.abs() <= reach)

    grad = torch.ones(1, 2, 9, 2, 40, 21)
    clean = run((query, *others), backend, [grad])
    query[0, 0, y, x] = bad
    offsets, grad_query, *_ = run((query, *others), backend, [grad])
    assert offsets[0, 0].isnan().eq(within(2)).all()
    torch.testing.assert_close(offsets[0, 0, ..., ~within(2)], clean[0][0, 0, ..., ~within(2)])
    torch.testing.assert_close(offsets[0, 1], clean[0][0, 1])
    assert grad_query[0, :4].isfinite().eq(~within(4)).all()
    torch.testing.assert_close(grad_query[0, :4, ~within(4)], clean[1][0, :4, ~within(4)])
    torch.testing.assert_close(grad_query[0, 4:], clean[1][0, 4:])


def test_a_gradient_that_is_not_finite_stays_where_it_is_resized_to(backend):
    shape = (1, 2, 4, 40, 21, 3, 3, 2.0)
    inputs, size = draw(shape, torch.float32, resized="halved"), shape[3:5]
    grads = [torch.ones(1, 2, 9, 2, *size), torch.ones(1, 8, *size)]
    clean = run(inputs, backend, grads, size)[2]
    grads[1][0, 3, 20, 10] = torch.nan
    grad_query = run(inputs, backend, grads, size)[2]
    spoilt = torch.zeros(8, 20, 11, dtype=torch.bool)
    spoilt[3, 9:11, 5:7] = True  # between which it lies
    assert grad_query[0].isfinite().logical_or(spoilt).all()
    assert grad_query[0, 3, 9, 5].isnan()
    torch.testing.assert_close(grad_query[0, ~spoilt], clean[0, ~spoilt])


def test_rows_that_pass_nothing_back(backend, pixel_by_pixel):
    """Their gradient is zero, but for the rounding of the rows they are computed with."""
    inputs = draw((1, 2, 4, 40, 21, 3, 3, 2.0), torch.float32)
    grad = torch.zeros(1, 2, 9, 2, 40, 21)
    grad[..., 20, :] = normals(0)(1, 2, 9, 2, 21)
    grad_query = run(inputs, backend, [grad])[1].abs().amax((0, 1, 3))
    seen = (torch.arange(40) - 20).abs() <= 2
    assert (grad_query[seen] > 1e-3 * grad_query.max()).all()
    assert (grad_query[~seen] < 1e-6 * grad_query.max()).all()


@pytest.mark.parametrize("used", [0, 1])
def test_gradients_of_one_result_alone(used, backend):
    shape = (1, 2, 4, 9, 7, 3, 3, 2.0)
    inputs, size = draw(shape, resized="halved"), shape[3:5]
    grads, expected = [], []
    for compute in (lambda *i: predict(i, backend, size), lambda *i: compose(*i, size)):
        tensors = [i.detach().requires_grad_() for i in inputs[:6]]
        result = compute(*tensors, *inputs[6:])[used]
        found = torch.autograd.grad(result.square().sum(), tensors, materialize_grads=True)
        (expected if grads else grads).extend(found)
    torch.testing.assert_close(grads, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.cpu
@pytest.mark.parametrize("resized", ["not", "halved"])
def test_bits_do_not_depend_on_the_threads(resized, compiled_kernels):
    shape, threads = (2, 2, 12, 70, 37, 3, 3, 2.0), torch.get_num_threads()
    inputs, size = draw(shape, torch.float32, resized=resized), size_of(shape, resized)
    grads = [grad.float() for grad in expected_of(inputs, size)[0]]
    try:
        torch.set_num_threads(1)
        expected = run(inputs, "cpp", grads, size)
        for count in (2, 3, 16):
            torch.set_num_threads(count)
            for actual, wanted in zip(run(inputs, "cpp", grads, size), expected, strict=True):
                assert actual.equal(wanted)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("resized", ["not", "halved", "wider"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", [3, 5])
def test_writes_all_that_it_allocates(kernel, layout, resized, backend):
    shape = (2, 2, 5, 34, 19, kernel, 3, 2.0)
    inputs, size = draw(shape, torch.float32, resized=resized), size_of(shape, resized)
    inputs = (laid_out(inputs[0], layout), *inputs[1:])
    grads = [grad.float() for grad in expected_of(inputs, size)[0]]
    # Fills what torch.empty returns with NaN.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        results = run(inputs, backend, grads, size)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(result.isfinite().all() for result in results)


@pytest.mark.parametrize("resized", ["not", "halved"])
def test_saves_its_inputs_and_its_results_alone(resized, backend):
    """Of a query that is resized the result alone."""
    shape = (1, 2, 4, 5, 7, 3, 3, 2.0)
    inputs = draw(shape, torch.float32, requires_grad=True, resized=resized)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()), id):
        results = predict(inputs, backend, size_of(shape, resized))
    allowed = (*results, *inputs[1:6], *(inputs[:1] if resized == "not" else ()))
    assert set(saved) <= {t.data_ptr() for t in allowed}


@pytest.mark.parametrize("changed", ["query", "offsets"])
def test_what_was_saved_and_changed_in_place_raises(changed, backend):
    query, *others = draw((1, 2, 4, 5, 7, 3, 3, 2.0), requires_grad=True)
    query = 2 * query
    offsets, _ = predict_offsets(query, *others, None, backend)
    (query if changed == "query" else offsets).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        offsets.sum().backward()


@pytest.mark.parametrize("resized", ["not", "halved"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph(dynamic, resized):
    shape = (1, 2, 4, 5, 7, 3, 3, 2.0)
    inputs = draw(shape, torch.float32, requires_grad=True, resized=resized)
    size = size_of(shape, resized)
    compiled = torch.compile(predict, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    results = compiled(inputs, "auto", size)
    torch.testing.assert_close(results, predict(inputs, "auto", size))
    sum(result.sum() for result in results).backward()
    assert inputs[0].grad.isfinite().all()


def test_exports_as_one_operator():
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return predict_offsets(*tensors, 2, 2.0)[0]

    tensors = draw((1, 2, 4, 5, 7, 3, 3, 2.0), torch.float32)[:6]
    program = torch.export.export(Module(), tensors)
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called == [OP, operator.getitem]
    torch.testing.assert_close(program.module()(*tensors), Module()(*tensors))


def test_exports_for_all_sizes():
    class Module(torch.nn.Module):
        def forward(self, query, *parameters):
            size = [2 * side for side in query.shape[2:]]
            return predict_offsets(query, *parameters, 2, 2.0, size)

    tensors = draw((2, 2, 4, 5, 7, 3, 3, 2.0), torch.float32)[:6]
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(Module(), tensors, dynamic_shapes=(sizes, (None,) * 5))
    others = draw((3, 2, 4, 6, 4, 3, 3, 2.0), torch.float32)[:6]
    torch.testing.assert_close(program.module()(*others), Module()(*others))


@pytest.mark.cpu
@pytest.mark.parametrize(
    "index, change, message",
    [
        (0, torch.zeros(1, 7, 5, 5), "query of 2 groups"),
        (0, torch.zeros(8, 5, 5), "4-d query"),
        (1, torch.zeros(4, 1, 5, 5), r"expected depthwise \(4, 1, 3, 3\)"),
        (2, torch.zeros(3), r"expected norm_weight \(4,\), got \(3,\)"),
        (4, torch.zeros(18, 4, 2, 2), "odd convolution"),
        (4, torch.zeros(8, 4, 3, 3), "2 k² outputs"),
        (5, torch.zeros(17), r"expected conv_bias \(18,\)"),
        (0, torch.zeros(1, 8, 5, 5, dtype=torch.int64), "floating-point"),
        (7, -2.0, "expected a finite offset_range of at least 0, got -2.0"),
        (7, float("inf"), "expected a finite offset_range"),
        (7, float("nan"), "expected a finite offset_range"),
    ],
)
def test_inputs_that_do_not_fit_raise(index, change, message):
    inputs = list(draw((1, 2, 4, 5, 5, 3, 3, 2.0), torch.float32))
    inputs[index] = change
    with pytest.raises(RuntimeError, match=message):
        predict_offsets(*inputs)


@pytest.mark.parametrize("size", [(4,), (0, 3), (3, -1), (2, 3, 4)])
def test_sizes_that_are_none_raise(size):
    query, *others = draw((1, 2, 4, 5, 5, 3, 3, 2.0), torch.float32)
    with pytest.raises(RuntimeError, match=r"expected a size \(Y, X\)"):
        predict_offsets(query, *others, size)
    with pytest.raises(RuntimeError, match=r"only a batch may be empty, got \(1, 8, 0, 5\)"):
        predict_offsets(query[:, :, :0], *others, (4, 4))
