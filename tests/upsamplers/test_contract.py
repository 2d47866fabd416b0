"""What every registered upsampler that needs no guide does alike."""

import pytest
import torch
from gradients import gradcheck
from lda_aqu import UPSAMPLER_REGISTRY, build_upsampler
from lda_aqu.errors import InputError
from randomized import randomized

CHANNELS = 32


@pytest.fixture(params=UPSAMPLER_REGISTRY.unguided())
def module(request):
    return randomized(request.param, CHANNELS)


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3)])
@pytest.mark.parametrize("output_size", [None, (9, 5), (7, 11), (1, 1)])
def test_any_size(module, batch, size, output_size):
    x = torch.randn(batch, CHANNELS, *size, requires_grad=True)
    y = module(x, output_size=output_size)
    assert y.shape == (batch, CHANNELS, *(output_size or (2 * size[0], 2 * size[1])))
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", UPSAMPLER_REGISTRY.unguided())
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8.0])
def test_scale_factor(name, scale):
    y = build_upsampler(name, CHANNELS, scale)(torch.randn(1, CHANNELS, 2, 3))
    assert y.shape == (1, CHANNELS, 2 * scale, 3 * scale)


@pytest.mark.parametrize("output_size", [None, (5, 5), (7, 9)])
def test_gradients(module, output_size):
    module = module.double()
    x = torch.randn(1, CHANNELS, 3, 3, dtype=torch.float64, requires_grad=True)
    parameters = dict(module.named_parameters())

    def run(x, *values):
        state = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(module, state, (x, output_size))

    assert gradcheck(run, (x, *parameters.values()))


def test_memory_formats_agree(module):
    x = torch.randn(2, CHANNELS, 5, 7)
    expected = module(x)
    for other in (
        x.to(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([x, x], 3)[..., :7],
    ):
        torch.testing.assert_close(module(other), expected, rtol=1e-4, atol=1e-4)
    module.to(memory_format=torch.channels_last)
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(module, dtype):
    x = torch.randn(1, CHANNELS, 6, 5, requires_grad=True)
    expected = module(x)
    half = x.detach().to(dtype).requires_grad_()
    y = module.to(dtype)(half)
    y.float().sum().backward()
    assert y.dtype == half.grad.dtype == dtype
    assert half.grad.isfinite().all() and all(p.grad.isfinite().all() for p in module.parameters())
    assert (y.float() - expected).abs().mean() < 0.1 * expected.abs().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_keeps_the_dtype(module, device, dtype):
    x = torch.randn(1, CHANNELS, 6, 5).to(dtype).requires_grad_()
    expected = module(x.detach().float())
    with torch.autocast(device.type, torch.bfloat16):
        y = module(x)
    y.float().sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())
    assert (y.float() - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_compiles_without_a_graph_break(module):
    x = torch.randn(1, CHANNELS, 4, 5)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.parametrize("name", UPSAMPLER_REGISTRY.unguided())
@pytest.mark.parametrize("shape", [(1, 8, 4, 4), (CHANNELS, 4, 4)])
def test_calls_that_do_not_fit_raise(name, shape):
    with pytest.raises(InputError, match="built for"):
        build_upsampler(name, CHANNELS)(torch.zeros(shape))
