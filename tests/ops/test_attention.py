import operator

import numpy as np
import oracle
import pytest
import torch
from gradients import gradcheck
from lda_aqu.ops import local_deformable_attention as attend
from random_tensors import normals
from tensors import laid_out

OP = torch.ops.lda_aqu.local_deformable_attention.default


def sample_inputs(seed: int, dtype=torch.float64, requires_grad: bool = False) -> tuple:
    """Inputs of odd shapes drawn from a seed; offsets reach outside the map."""
    rng = np.random.default_rng(seed)
    heads, groups = (int(rng.choice([1, 2])) for _ in range(2))
    unit = heads * groups
    depth, channels = unit * int(rng.integers(1, 4)), unit * int(rng.integers(1, 4))
    points = int(rng.choice([1, 3, 5])) ** 2
    batch = int(rng.integers(1, 3))
    in_h, in_w, out_h, out_w = (int(n) for n in rng.integers(1, 8, 4))
    normal = normals(seed)

    def draw(*shape: int) -> torch.Tensor:
        return normal(*shape, dtype=torch.float64).to(dtype).requires_grad_(requires_grad)

    offsets = 3 * draw(batch, groups, points, 2, out_h, out_w).detach()
    return (
        draw(batch, depth, out_h, out_w),
        draw(batch, depth, in_h, in_w),
        draw(batch, channels, in_h, in_w),
        offsets.requires_grad_(requires_grad),
        draw(heads, points, depth // heads) if rng.random() < 0.7 else None,
        heads,
    )


def arrays(inputs: tuple) -> list:
    return [i.double().numpy(force=True) if torch.is_tensor(i) else i for i in inputs]


@pytest.mark.parametrize("seed", range(40))
def test_matches_the_loops(seed, backend):
    inputs = sample_inputs(seed)
    expected = torch.as_tensor(oracle.attention(*arrays(inputs)))
    torch.testing.assert_close(attend(*inputs, backend), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_gradients(seed, backend):
    """Along random directions; the whole Jacobian of the module is in its own test."""
    inputs = sample_inputs(seed, requires_grad=True)
    assert gradcheck(attend, (*inputs, backend))


@pytest.mark.parametrize("seed, has_bias", [(5, True), (2, False)])
def test_opcheck(seed, has_bias, backend):
    inputs = sample_inputs(seed, torch.float32, requires_grad=True)
    assert (inputs[4] is not None) == has_bias
    torch.library.opcheck(OP, (*inputs, backend))


@pytest.mark.parametrize("layout", ["channels_last", "expanded", "transposed"])
def test_results_lie_in_memory_as_the_inputs(layout, backend, exact):
    """Fake kernels promise strides, and a compiled graph relies on them."""
    query, key, value, offsets, bias, heads = sample_inputs(9, torch.float32)
    expanded = value[..., :1].expand(value.shape)
    value = (expanded if layout == "expanded" else laid_out(value, layout)).requires_grad_()
    torch.library.opcheck(OP, (query, key, value, offsets, bias, heads, backend))
    expected = attend(query, key, value.detach().contiguous(), offsets, bias, heads, backend)
    actual = attend(query, key, value, offsets, bias, heads, backend)
    torch.testing.assert_close(actual, expected, **exact)


@pytest.mark.parametrize("layout", ["cut", "transposed"])
def test_inputs_in_any_strides(layout, backend):
    *tensors, heads = sample_inputs(10)

    def run(tensors: list) -> list[torch.Tensor]:
        tensors = [t.requires_grad_() for t in tensors]
        output = attend(*tensors, heads, backend)
        grad = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
        return [output, *torch.autograd.grad(output, tensors, grad)]

    results = run([laid_out(t, layout) for t in tensors])
    for actual, expected in zip(results, run(tensors), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, backend):
    inputs = sample_inputs(3, dtype)
    expected = torch.as_tensor(oracle.attention(*arrays(inputs)))
    output = attend(*inputs, backend)
    assert output.dtype == dtype
    # No more than the rounding of the output itself.
    torch.testing.assert_close(
        output.double(), expected, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_to_even(dtype, backend):
    steps = torch.tensor([0, 0.5, 1, 1.5, 2])  # read at and between three neighbouring numbers
    expected = (1 + steps * torch.finfo(dtype).eps).to(dtype)
    query, key, value = torch.zeros(1, 1, 1, 5), torch.zeros(1, 1, 1, 3), expected[::2]
    offsets = torch.zeros(1, 1, 1, 2, 1, 5)
    output = attend(query, key, value.view(1, 1, 1, 3), offsets, None, 1, backend)
    assert output.flatten().equal(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_half_precision(dtype, backend):
    inputs = sample_inputs(3, dtype, requires_grad=True)
    wide = [i.detach().double().requires_grad_() if torch.is_tensor(i) else i for i in inputs]
    grad = torch.randn_like(attend(*inputs, backend))
    attend(*inputs, backend).backward(grad)
    attend(*wide, "plain").backward(grad.double())
    for narrow, exact in zip(inputs[:4], wide[:4], strict=True):
        assert narrow.grad.dtype == dtype
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(narrow.grad.double(), exact.grad, rtol=eps, atol=eps)


@pytest.mark.parametrize("point", range(9))
def test_largest_logit_is_that_of_any_point(point, backend):
    """So large, in float32, that nothing is left of the others."""
    bias, value = torch.zeros(1, 9, 1), torch.randn(1, 2, 4, 4)
    bias[:, point] = 1000
    inputs = (torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 4, 4), value, torch.zeros(1, 1, 9, 2, 8, 8))
    exact = attend(*(t.double() for t in (*inputs, bias)), 1, "plain")
    output = attend(*inputs, bias, 1, backend)
    torch.testing.assert_close(output.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("far", [40.0, 1e6, 1e30])
def test_positions_far_outside_read_zero(far, backend):
    query, key, value, offsets, bias, heads = sample_inputs(1)
    value.requires_grad_()
    for sign in (-1, 1):
        output = attend(query, key, value, offsets + sign * far, bias, heads, backend)
        assert output.eq(0).all()
        (grad,) = torch.autograd.grad(output.sum(), value)
        assert grad.eq(0).all()


def test_nan_in_one_pixel_stays_where_it_is_read(backend):
    query, key, value = torch.randn(1, 2, 8, 8), torch.randn(1, 2, 8, 8), torch.randn(1, 2, 8, 8)
    value[0, 0, 0, 0] = torch.nan
    output = attend(query, key, value, torch.zeros(1, 1, 9, 2, 8, 8), None, 1, backend)
    assert output[0, 0, 0, 0].isnan()
    assert output[0, 0, 3:, 3:].isfinite().all() and output[0, 1].isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", range(5))
def test_what_is_not_finite_propagates_and_crashes_nothing(which, bad, backend):
    """Wherever it is: the pixel that sees it is not finite, one that does not is as before."""
    normal = normals(0)
    inputs = [
        normal(1, 4, 12, 12),
        normal(1, 4, 6, 6),
        normal(1, 4, 6, 6),
        normal(1, 2, 9, 2, 12, 12),
        normal(1, 9, 4),
    ]
    clean = attend(*inputs, 1, backend)
    inputs[which].view(-1)[0] = bad
    inputs = [i.requires_grad_() for i in inputs]
    output = attend(*inputs, 1, backend)
    output.sum().backward()
    expected = attend(*inputs, 1, "plain")
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    if which < 3:
        assert not output[0, :, 0, 0].isfinite().all()
        torch.testing.assert_close(output[0, :, 8:, 8:], clean[0, :, 8:, 8:])
        assert inputs[which].grad[0, :, 4:, 4:].isfinite().all()
    elif which == 3:
        torch.testing.assert_close(output[0, :, 1:, 1:], clean[0, :, 1:, 1:])
    if bad != bad:  # an infinitely far point may read zero
        assert output[0, :, 0, 0].isnan().any()


def test_compiles_in_one_graph():
    inputs = sample_inputs(5, torch.float32)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), attend(*inputs))


@pytest.mark.cpu
@pytest.mark.parametrize(
    "change, message",
    [
        ({"key": torch.zeros(1, 3, 4, 4)}, "do not fit"),
        ({"offsets": torch.zeros(1, 1, 9, 2, 8, 7)}, "do not fit"),
        ({"offsets": torch.zeros(1, 1, 8, 2, 8, 8)}, "k² points"),
        ({"offsets": torch.zeros(1, 3, 9, 2, 8, 8)}, "multiples of heads and groups"),
        ({"num_heads": 0}, "multiples of heads and groups"),
        ({"position_bias": torch.zeros(1, 9, 3)}, "position_bias"),
        ({"query": torch.zeros(1, 2, 8, 8, dtype=torch.int64)}, "floating-point"),
    ],
)
def test_shapes_that_do_not_fit_raise(change, message):
    inputs = {
        "query": torch.zeros(1, 2, 8, 8),
        "key": torch.zeros(1, 2, 4, 4),
        "value": torch.zeros(1, 4, 4, 4),
        "offsets": torch.zeros(1, 1, 9, 2, 8, 8),
        "position_bias": None,
        "num_heads": 1,
    }
    with pytest.raises(RuntimeError, match=message):
        attend(**{**inputs, **change})


def test_saves_its_inputs_alone(backend):
    """The k² samples are in memory in neither direction: what backward holds are the inputs."""
    inputs = sample_inputs(6, torch.float32, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()), id):
        attend(*inputs, backend)
    assert set(saved) <= {i.data_ptr() for i in inputs if torch.is_tensor(i)}


def test_exports_as_one_operator():
    class Module(torch.nn.Module):
        def forward(self, *inputs):
            return attend(*inputs, None, 1)

    inputs = (
        torch.randn(1, 4, 8, 8),
        torch.randn(1, 4, 4, 4),
        torch.randn(1, 4, 4, 4),
        torch.randn(1, 2, 9, 2, 8, 8),
    )
    program = torch.export.export(Module(), inputs)
    called = [n.target for n in program.graph.nodes if n.op == "call_function"]
    assert called == [OP, operator.getitem]
    torch.testing.assert_close(program.module()(*inputs), Module()(*inputs))
