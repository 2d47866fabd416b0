import importlib

import numpy as np
import pytest
import torch
from lda_aqu.ops import content_aware_reassembly

module = importlib.import_module("lda_aqu.ops.content_aware_reassembly")


def loops(x: np.ndarray, kernels: np.ndarray, scale: int) -> np.ndarray:
    """From the definition, one output pixel and one weight at a time."""
    n, c, h, w = x.shape
    k = round(kernels.shape[1] ** 0.5)
    output = np.zeros((n, c, h * scale, w * scale))
    for i in range(h * scale):
        for j in range(w * scale):
            for u in range(k):
                for v in range(k):
                    row, column = i // scale + u - k // 2, j // scale + v - k // 2
                    if 0 <= row < h and 0 <= column < w:
                        weight = kernels[:, u * k + v, i, j]
                        output[:, :, i, j] += weight[:, None] * x[:, :, row, column]
    return output


def sample(n: int, c: int, h: int, w: int, kernel: int, scale: int, dtype=torch.float64):
    generator = torch.Generator().manual_seed(kernel * 100 + h * 10 + w)
    x = torch.randn(n, c, h, w, generator=generator, dtype=dtype)
    kernels = torch.randn(n, kernel**2, h * scale, w * scale, generator=generator, dtype=dtype)
    return x.requires_grad_(), kernels.requires_grad_(), scale


SAMPLES = [
    # N, C, H, W, k, s
    (2, 3, 5, 7, 5, 2),
    (3, 2, 1, 1, 5, 2),
    (1, 2, 6, 3, 3, 4),
    (2, 2, 4, 4, 1, 1),
    (2, 3, 2, 9, 7, 3),
    (5, 1, 3, 3, 3, 1),
]


@pytest.fixture(params=[1, 10, 25, 1024])
def band_pixels(request, monkeypatch):
    """Bands of one row, of some rows, of whole images, and all in one."""
    monkeypatch.setattr(module, "CPU_BAND_PIXELS", request.param)


@pytest.mark.parametrize("shape", SAMPLES)
def test_matches_the_loops(shape, band_pixels):
    x, kernels, scale = sample(*shape)
    expected = torch.from_numpy(loops(x.detach().numpy(), kernels.detach().numpy(), scale))
    torch.testing.assert_close(content_aware_reassembly(x, kernels, scale).detach(), expected)
    torch.testing.assert_close(module._exportable(x, kernels, scale).detach(), expected)


@pytest.mark.parametrize("shape", SAMPLES)
def test_gradients(shape, band_pixels):
    x, kernels, scale = sample(*shape)
    assert torch.autograd.gradcheck(
        lambda x, kernels: content_aware_reassembly(x, kernels, scale), (x, kernels), fast_mode=True
    )


@pytest.mark.parametrize("shape", [SAMPLES[0], (0, 3, 4, 4, 5, 2)])
def test_is_a_well_formed_operator(shape):
    """Schema, shapes under compilation, and autograd registration."""
    torch.library.opcheck(torch.ops.lda_aqu.content_aware_reassembly, sample(*shape))


def test_compiles_with_sizes_that_vary():
    compiled = torch.compile(
        content_aware_reassembly, backend="aot_eager", fullgraph=True, dynamic=True
    )
    for shape in ((2, 3, 5, 7, 5, 2), (1, 3, 4, 6, 5, 2)):
        args = sample(*shape)
        torch.testing.assert_close(compiled(*args), content_aware_reassembly(*args))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sums_are_in_float32_under_autocast_too(dtype):
    x, kernels, scale = sample(1, 4, 4, 5, 5, 2, torch.float32)
    half = [t.detach().to(dtype).requires_grad_() for t in (x, kernels)]
    exact = [t.detach().float().requires_grad_() for t in half]
    expected = content_aware_reassembly(*exact, scale)
    grad = torch.randn_like(expected).to(dtype)
    expected_grads = torch.autograd.grad(expected, exact, grad.float())
    with torch.autocast("cpu", torch.bfloat16):
        y = content_aware_reassembly(*half, scale)
        grads = torch.autograd.grad(y, half, grad)
    assert y.dtype == dtype and torch.equal(y, expected.to(dtype))
    for actual, wanted in zip(grads, expected_grads, strict=True):
        assert actual.dtype == dtype and torch.equal(actual, wanted.to(dtype))


def test_memory_formats():
    x, kernels, scale = sample(2, 4, 5, 7, 3, 2)
    expected = content_aware_reassembly(x, kernels, scale)
    x_last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    y = content_aware_reassembly(x_last, kernels, scale)
    assert expected.is_contiguous() and y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.contiguous(), expected)
    grad = torch.randn_like(expected)
    (y_grad,) = torch.autograd.grad(y, x_last, grad)
    (expected_grad,) = torch.autograd.grad(expected, x, grad)
    torch.testing.assert_close(y_grad.contiguous(), expected_grad)


@pytest.mark.parametrize(
    "x, kernels, message",
    [
        ((1, 2, 3, 3), (1, 9, 6, 5), "do not fit"),
        ((1, 2, 3, 3), (2, 9, 6, 6), "do not fit"),
        ((2, 3, 3), (1, 9, 6, 6), "do not fit"),
        ((1, 2, 3, 3), (1, 8, 6, 6), "k odd, got 8"),
        ((1, 2, 3, 3), (1, 16, 6, 6), "k odd, got 16"),
    ],
)
def test_inputs_that_do_not_fit_raise(x, kernels, message):
    with pytest.raises(RuntimeError, match=message):
        content_aware_reassembly(torch.zeros(x), torch.zeros(kernels), 2)
    with pytest.raises(RuntimeError, match="floating-point"):
        content_aware_reassembly(
            torch.zeros(1, 2, 3, 3, dtype=torch.int64), torch.zeros(1, 9, 6, 6), 2
        )
