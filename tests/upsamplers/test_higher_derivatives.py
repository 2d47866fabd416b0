"""Gradients that are to be differentiated, and batches of them, are those of one at a time."""

import pytest
import torch
from lda_aqu import UPSAMPLER_REGISTRY
from lda_aqu.upsamplers import GuidedUpsampler
from randomized import randomized

CHANNELS = 32


@pytest.fixture(params=UPSAMPLER_REGISTRY)
def graph(request) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """An upsampler's output in float64, and all that it depends on."""
    module = randomized(request.param, CHANNELS).double()
    sizes = [(3, 3), (6, 6)][: 1 + isinstance(module, GuidedUpsampler)]
    maps = [torch.randn(1, CHANNELS, *s, dtype=torch.float64, requires_grad=True) for s in sizes]
    return module(*maps), [*maps, *module.parameters()]


def test_a_graph_of_the_gradients_does_not_change_them(graph):
    output, inputs = graph
    grad = torch.randn_like(output)
    expected = torch.autograd.grad(output, inputs, grad, retain_graph=True)
    actual = torch.autograd.grad(output, inputs, grad, create_graph=True)
    torch.testing.assert_close(actual, expected)


def test_batches_of_gradients(graph):
    output, inputs = graph
    grads = torch.randn(2, *output.shape, dtype=output.dtype, device=output.device)

    def gradients(grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(output, inputs, grad, retain_graph=True)

    expected = [torch.stack(both) for both in zip(*map(gradients, grads), strict=True)]
    actual = torch.func.vmap(gradients)(grads)
    assert not any(result.requires_grad for result in actual)
    torch.testing.assert_close(list(actual), expected)
