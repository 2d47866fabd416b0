"""Upsamplers captured in CUDA graphs, which are replayed with other values."""

import copy

import pytest
import torch
from lda_aqu import UPSAMPLER_REGISTRY
from randomized import randomized

CHANNELS = 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", sorted(UPSAMPLER_REGISTRY))
def test_replayed_forward_and_backward(device, name, dtype):
    if device.type != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    module = randomized(name, CHANNELS)
    is_guided = name not in UPSAMPLER_REGISTRY.unguided()

    def maps() -> list[torch.Tensor]:
        sizes = ((6, 10), (12, 20)) if is_guided else ((6, 10),)
        return [torch.randn(2, CHANNELS, *size, dtype=dtype, requires_grad=True) for size in sizes]

    with torch.autocast("cuda", torch.float16, enabled=dtype == torch.float16, cache_enabled=False):
        graphed = torch.cuda.make_graphed_callables(copy.deepcopy(module), tuple(maps()))
        for _ in range(2):
            inputs = maps()
            outputs = module(*inputs), graphed(*inputs)
            gradients = [
                torch.autograd.grad(y.sum(), [*inputs, *owner.parameters()])
                for y, owner in zip(outputs, (module, graphed), strict=True)
            ]
            tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.float16 else {}
            torch.testing.assert_close(*outputs, **tolerance)
            torch.testing.assert_close(*gradients, **tolerance)
