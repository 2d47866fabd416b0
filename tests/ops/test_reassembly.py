import oracle
import pytest
import torch
from gradients import gradcheck, gradgradcheck
from lda_aqu.ops import reassemble, similarity
from lda_aqu.ops.plain import reassembly as plain
from random_tensors import normals

SIZES = [
    ((3, 4), (6, 8), 3),
    ((3, 4), (6, 8), 5),
    ((2, 3), (6, 12), 3),
    ((4, 5), (4, 5), 3),
    ((3, 5), (5, 9), 5),
    ((4, 7), (7, 15), 3),
    ((5, 6), (3, 4), 3),
    ((5, 6), (10, 4), 1),
    ((1, 1), (2, 2), 5),
    ((1, 1), (1, 1), 3),
    ((2, 41), (1, 82), 3),
    ((3, 2), (3 * 41, 2 * 47), 1),
]


@pytest.mark.parametrize("input_size, output_size, k", SIZES)
def test_matches_the_loops(input_size, output_size, k):
    normal = normals(0)
    x, query, weights = (
        normal(2, *shape, dtype=torch.float64)
        for shape in ((6, *input_size), (6, *output_size), (2, k * k, *output_size))
    )
    for n in range(2):
        pixels = oracle.windows(x[n].numpy(force=True), output_size, k)
        groups = (
            weights[n].repeat_interleave(3, 0).transpose(0, 1).numpy(force=True)
        )  # (k², C, Y, X)
        expected = (pixels * groups).sum(0)
        torch.testing.assert_close(reassemble(x, weights)[n], torch.as_tensor(expected))
        expected = (pixels * query[n].numpy(force=True)).sum(1)
        torch.testing.assert_close(similarity(x, query, k)[n], torch.as_tensor(expected))


@pytest.mark.parametrize(
    "input_size, output_size", [((3, 4), (6, 8)), ((3, 4), (7, 7)), ((30, 1), (58, 2))]
)
def test_what_is_exported_is_the_same(monkeypatch, input_size, output_size):
    x, query = torch.randn(2, 6, *input_size), torch.randn(2, 6, *output_size)
    weights = torch.randn(2, 2, 9, *output_size)
    expected = reassemble(x, weights), similarity(x, query, 3)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    for name in ("reassemble", "similarity"):
        monkeypatch.setattr(plain, name, None)
    torch.testing.assert_close((reassemble(x, weights), similarity(x, query, 3)), expected)


def test_compiles():
    compiled = torch.compile(reassemble, backend="aot_eager", fullgraph=True)
    for size in ((6, 8), (7, 9)):
        x = torch.randn(1, 4, 3, 4, requires_grad=True)
        weights = torch.randn(1, 1, 9, *size, requires_grad=True)
        results = []
        for function in (compiled, reassemble):
            y = function(x, weights)
            results.append((y, *torch.autograd.grad(y.square().sum(), (x, weights))))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("output_size", [(6, 8), (5, 7)])
def test_gradients_of_every_order(output_size):
    x = torch.randn(1, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, 2, 9, *output_size, dtype=torch.float64, requires_grad=True)
    query = torch.randn(1, 4, *output_size, dtype=torch.float64, requires_grad=True)
    for function, inputs in (
        (reassemble, (x, weights)),
        (lambda x, query: similarity(x, query, 3), (x, query)),
    ):
        assert gradcheck(function, inputs)
        assert gradgradcheck(function, inputs)


def test_results_and_gradients_can_be_changed_in_place():
    x, weights, query = torch.randn(1, 4, 3, 4), torch.randn(1, 2, 9, 6, 8), torch.randn(1, 4, 6, 8)
    for inputs, function in (
        ((x, weights), reassemble),
        ((x, query), lambda x, query: similarity(x, query, 3)),
    ):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        expected = torch.autograd.grad(function(*leaves).relu().sum(), leaves)
        actual = torch.autograd.grad(function(*leaves).relu_().sum(), leaves)
        torch.testing.assert_close(actual, expected)
        for grad, leaf in zip(actual, leaves, strict=True):
            grad += leaf  # such as a penalty that is differentiated
            assert grad.requires_grad


def test_operators_are_registered_as_pytorch_asks():
    x, weights = torch.randn(2, 4, 3, 5), torch.randn(2, 2, 9, 6, 6)
    query, operators = torch.randn(2, 4, 6, 6), torch.ops.lda_aqu
    for operator, inputs in (
        (operators.reassemble, (x, weights)),
        (operators.similarity, (x, query, 2, 9)),
        (operators.spread, (weights, query, 3, 5)),
    ):
        for tensor in inputs[:2]:
            tensor.requires_grad_()
        torch.library.opcheck(operator.default, (*inputs, "auto"))


def test_chunks_do_not_change_the_result(monkeypatch):
    x, weights = torch.randn(2, 12, 4, 5), torch.randn(2, 2, 9, 8, 10)
    inputs = (x.requires_grad_(), weights.requires_grad_())

    def run():
        y = reassemble(*inputs)
        return y, *torch.autograd.grad(y.square().sum(), inputs)

    whole = run()
    monkeypatch.setattr(plain, "CHUNK", 4 * 4 * 8 * 10)  # 4 of a group's 6 channels
    for part, expected in zip(run(), whole, strict=True):
        torch.testing.assert_close(part, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_up_in_float32(dtype):
    x, weights = torch.randn(1, 8, 3, 4).to(dtype), torch.rand(1, 1, 25, 6, 8).to(dtype)
    y = reassemble(x, weights)
    assert y.dtype == dtype
    torch.testing.assert_close(y, reassemble(x.float(), weights.float()).to(dtype))
    query = torch.randn(1, 8, 6, 8).to(dtype)
    torch.testing.assert_close(similarity(x, query, 5), similarity(x.float(), query.float(), 5))


def test_empty_batch():
    x = torch.zeros(0, 4, 3, 4, requires_grad=True)
    reassemble(x, torch.zeros(0, 1, 9, 6, 7)).sum().backward()
    assert x.grad.shape == x.shape
    assert similarity(x, torch.zeros(0, 4, 6, 7), 3).shape == (0, 9, 6, 7)


@pytest.mark.parametrize("shape", [(1, 4, 9, 6, 8), (2, 3, 9, 6, 8), (2, 0, 9, 6, 8), (2, 9, 6, 8)])
def test_shapes_that_do_not_fit_raise(shape):
    with pytest.raises(RuntimeError, match=r"x \(2, 4, 3, 4\)"):
        reassemble(torch.zeros(2, 4, 3, 4), torch.zeros(shape))
    with pytest.raises(RuntimeError, match="do not fit"):
        similarity(torch.zeros(2, 4, 3, 4), torch.zeros(2, 5, 6, 8), 3)


def test_windows_have_a_centre():
    x = torch.zeros(1, 2, 3, 4)
    for number in (0, 4, 8, 16):
        with pytest.raises(RuntimeError, match=f"k² positions with k odd, got {number}"):
            reassemble(x, torch.zeros(1, 1, number, 6, 8))
    with pytest.raises(RuntimeError, match="k² positions with k odd, got 4"):
        similarity(x, torch.zeros(1, 2, 6, 8), 2)
    with pytest.raises(RuntimeError, match="expected a kernel_size of at least 1, got -3"):
        similarity(x, torch.zeros(1, 2, 6, 8), -3)
