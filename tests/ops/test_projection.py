import itertools

import pytest
import torch
from gradients import gradcheck
from lda_aqu.ops import cpp, project_normalized
from random_tensors import normals
from tensors import LAYOUTS, laid_out, relative_error
from torch.nn import functional as F

OP = torch.ops.lda_aqu.project_normalized.default

# batch, channels, height, width, channels of the projections
SHAPES = [
    (1, 8, 3, 5, (2, 3)),
    (2, 5, 1, 1, (1,)),
    (1, 1, 4, 3, (2,)),
    (2, 40, 7, 1, (4, 1, 6)),
    (3, 33, 5, 31, (7, 7)),
    (1, 256, 65, 70, (64, 64)),  # more than a chunk
]


def draw(shape: tuple, dtype=torch.float64, requires_grad: bool = False) -> list[torch.Tensor]:
    """A map, weight and bias of its norm, and weights of projections."""
    batch, channels, height, width, widths = shape
    draw_normal = normals(0)

    def normal(*size: int, scale: float = 1.0) -> torch.Tensor:
        drawn = scale * draw_normal(*size, dtype=torch.float64)
        return drawn.to(dtype).requires_grad_(requires_grad)

    x = 3 * normal(batch, channels, height, width).detach() + 2
    weights = (normal(width, channels, 1, 1, scale=channels**-0.5) for width in widths)
    return [x.requires_grad_(requires_grad), normal(channels), normal(channels), *weights]


def project(x, weight, bias, *weights, backend="auto"):
    return project_normalized(x, weight, bias, weights, backend)


def compose(x, weight, bias, *weights):
    """The same in functions of torch.nn, differentiable."""
    x = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, 1e-5).permute(0, 3, 1, 2)
    return [F.conv2d(x, projection) for projection in weights]


def run(inputs: list, backend: str, grads: list[torch.Tensor]) -> list[torch.Tensor]:
    """The results, and the gradients of all tensors."""
    tensors = [i.detach().requires_grad_() for i in inputs]
    outputs = project(*tensors, backend=backend)
    grads = [grad.to(output.dtype) for grad, output in zip(grads, outputs, strict=True)]
    return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, tensors, grads)]


def expected_of(inputs: list) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gradients of the results; the results, and the gradients of all tensors; in float64."""
    tensors = [i.detach().double().requires_grad_() for i in inputs]
    outputs, normal = compose(*tensors), normals(1)
    grads = [normal(*o.shape, dtype=torch.float64) for o in outputs]
    return grads, [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, tensors, grads)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_composition(shape, layout, backend):
    inputs = draw(shape)
    grads, expected = expected_of(inputs)
    inputs[0] = laid_out(inputs[0], layout)
    for actual, wanted in zip(run(inputs, backend, grads), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.cpu
def test_every_instruction_set_in_float32(instruction_set):
    """A third of the pairs of shape and layout each, with every shape and every layout in it."""
    assert cpp.instruction_set() == instruction_set
    pairs = list(itertools.product(SHAPES, LAYOUTS))
    for shape, layout in pairs[("generic", "avx2", "avx512").index(instruction_set) :: 3]:
        inputs = draw(shape, torch.float32)
        grads, expected = expected_of(inputs)
        inputs[0] = laid_out(inputs[0], layout)
        results = run(inputs, "cpp", grads)
        for actual, wanted in zip(results, expected, strict=True):
            # Beside a single channel, normalised to zero, there is nothing to be relative to.
            assert relative_error(actual, wanted) < 1e-5 or wanted.abs().max() < 1e-12


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_gradients(shape, backend):
    inputs = draw(shape, requires_grad=True)

    def function(*tensors):
        return tuple(project(*tensors, backend=backend))

    assert gradcheck(function, inputs)


def test_a_result_that_is_not_used(backend):
    inputs = draw(SHAPES[0], requires_grad=True)
    project(*inputs, backend=backend)[1].sum().backward()
    expected = torch.autograd.grad(compose(*inputs)[1].sum(), inputs, allow_unused=True)
    for tensor, wanted in zip(inputs, expected, strict=True):
        wanted = torch.zeros_like(tensor) if wanted is None else wanted
        torch.testing.assert_close(tensor.grad, wanted, rtol=1e-10, atol=1e-12)


def test_results_can_be_changed_in_place(backend):
    inputs = draw(SHAPES[0], requires_grad=True)
    gradients = []
    for relu in (torch.relu, torch.relu_):
        total = sum(relu(output).sum() for output in project(*inputs, backend=backend))
        gradients.append(torch.autograd.grad(total, inputs))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout, backend):
    x, weight, bias, *weights = draw((2, 6, 3, 5, (2, 3)), torch.float32, requires_grad=True)
    x = laid_out(x.detach(), layout).requires_grad_()
    weights, widths = torch.cat(weights).detach().requires_grad_(), [len(w) for w in weights]
    # Of others, what may differ is where results lie.
    more = {} if layout in LAYOUTS[:2] else {"test_utils": "test_faketensor"}
    inputs = (x, weight, bias, weights, widths, torch.float32, backend)
    torch.library.opcheck(OP, inputs, **more)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_are_channels_last(layout, backend):
    x, *parameters = draw(SHAPES[4])
    x = laid_out(x, layout)
    for output in project(x, *parameters, backend=backend):
        assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, backend):
    inputs = draw(SHAPES[0], dtype)
    grads, expected = expected_of(inputs)
    for actual, wanted in zip(run(inputs, backend, grads), expected, strict=True):
        assert actual.dtype == dtype
        assert relative_error(actual, wanted) < 8 * torch.finfo(dtype).eps


def test_autocast(device, backend):
    inputs = draw(SHAPES[0], torch.float32)
    grads, expected = expected_of(inputs)
    with torch.autocast(device.type, torch.bfloat16):
        outputs = project(*inputs, backend=backend)
        results = run(inputs, backend, grads)
    assert {output.dtype for output in outputs} == {torch.bfloat16}
    assert {grad.dtype for grad in results[2:]} == {torch.float32}
    for actual, wanted in zip(results, expected, strict=True):
        assert relative_error(actual, wanted) < 0.05


def test_an_empty_batch(backend):
    inputs = draw((0, 6, 3, 5, (2, 3)))
    results = run(inputs, backend, [torch.zeros(0, n, 3, 5) for n in (2, 3)])
    assert [tuple(r.shape) for r in results[:3]] == [(0, 2, 3, 5), (0, 3, 3, 5), (0, 6, 3, 5)]
    assert all(grad.eq(0).all() for grad in results[3:])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_pixel(bad, backend):
    x, *parameters = draw(SHAPES[0], torch.float32)
    (clean, _), (height, width) = project(x, *parameters, backend=backend), x.shape[2:]
    x[0, 0, 0, 0] = bad
    output, _, grad, *_ = run(
        [x, *parameters], backend, [torch.ones(1, n, height, width) for n in (2, 3)]
    )
    assert output[..., 0, 0].isnan().all() and grad[..., 0, 0].isnan().all()
    torch.testing.assert_close(output[..., 1:], clean[..., 1:])
    assert grad[..., 1:].isfinite().all()


@pytest.mark.cpu
def test_any_number_of_threads(compiled_kernels):
    inputs, threads = draw(SHAPES[5], torch.float32), torch.get_num_threads()
    grads, _ = expected_of(inputs)
    try:
        torch.set_num_threads(1)
        expected = run(inputs, "cpp", grads)
        for count in (2, 3, 16):
            torch.set_num_threads(count)
            for actual, wanted in zip(run(inputs, "cpp", grads), expected, strict=True):
                assert relative_error(actual, wanted.double()) < 1e-5
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_writes_all_that_it_allocates(layout, backend):
    inputs = draw(SHAPES[4], torch.float32)
    grads, _ = expected_of(inputs)
    inputs[0] = laid_out(inputs[0], layout)
    # Fills what torch.empty returns with NaN.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        results = run(inputs, backend, grads)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(result.isfinite().all() for result in results)


def test_saves_its_inputs_alone(backend):
    inputs = draw(SHAPES[0], torch.float32, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()), id):
        project(*inputs, backend=backend)
    # Beside them the weights of all projections, side by side.
    assert len(set(saved) - {i.data_ptr() for i in inputs}) <= 1


def test_compiles_in_one_graph():
    inputs = draw(SHAPES[0], torch.float32, requires_grad=True)
    compiled = torch.compile(project, fullgraph=True, backend="aot_eager")
    outputs = compiled(*inputs)
    torch.testing.assert_close(outputs, project(*inputs))
    outputs[0].sum().backward()
    assert inputs[0].grad.isfinite().all()


def test_exports_as_one_operator():
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return project(*tensors)

    tensors = tuple(draw(SHAPES[0], torch.float32))
    program = torch.export.export(Module(), tensors)
    operators = [n.target for n in program.graph.nodes if n.op == "call_function"]
    assert operators.count(OP) == 1
    torch.testing.assert_close(program.module()(*tensors), Module()(*tensors))


@pytest.mark.cpu
@pytest.mark.parametrize(
    "index, change, message",
    [
        (0, torch.zeros(8, 3, 5), "4-d map"),
        (1, torch.zeros(7), r"expected norm_weight \(8,\), got \(7,\)"),
        (2, torch.zeros(8, 1), r"expected norm_bias \(8,\)"),
        (slice(3, None), [torch.zeros(2, 7, 1, 1)], r"expected weights \(2, 8, 1, 1\)"),
        (slice(3, None), [torch.zeros(2, 8, 3, 3)], r"expected weights \(2, 8, 1, 1\)"),
        (0, torch.zeros(1, 8, 3, 5, dtype=torch.int64), "floating-point"),
    ],
)
def test_shapes_that_do_not_fit_raise(index, change, message):
    inputs = draw(SHAPES[0], torch.float32)
    inputs[index] = change
    with pytest.raises(RuntimeError, match=message):
        project(*inputs)
