"""Run by test_triton_backend.py in a process of its own: Triton's interpreter is chosen at import."""

import numpy as np
import oracle
import pytest
import torch
import triton
from lda_aqu import LDAAQU
from lda_aqu.ops import plain, triton_backend, triton_kernels

# batch, heads, groups, depth, channels, k, input size, output size, bias
CASES = {
    "default": (1, 1, 2, 4, 6, 3, (3, 2), (4, 3), True),
    "heads across groups": (1, 2, 3, 6, 12, 1, (2, 3), (3, 5), True),
    "groups across heads": (2, 3, 2, 6, 6, 1, (3, 1), (2, 4), False),
    "heads within groups": (1, 4, 2, 4, 8, 1, (2, 4), (5, 3), True),
    "groups within heads": (1, 2, 4, 8, 4, 1, (3, 3), (4, 4), True),
    "five by five": (1, 1, 1, 3, 5, 5, (3, 4), (2, 3), True),
    "five by five, no bias": (1, 1, 1, 1, 1, 5, (2, 2), (3, 2), False),
    "one output row": (1, 1, 1, 2, 3, 3, (4, 3), (1, 5), True),
    "one output column": (2, 1, 1, 2, 2, 1, (3, 4), (6, 1), False),
    "one input pixel": (1, 1, 2, 2, 2, 1, (1, 1), (3, 2), True),
    "one pixel each": (1, 1, 1, 1, 1, 3, (1, 1), (1, 1), False),
    "smaller": (1, 1, 1, 3, 2, 1, (5, 4), (2, 3), True),
    "many channels": (1, 1, 1, 130, 259, 1, (2, 2), (2, 3), True),
}


def draw(case: str, dtype=torch.float64) -> tuple:
    batch, heads, groups, depth, channels, k, input_size, output_size, has_bias = CASES[case]
    generator = torch.Generator().manual_seed(list(CASES).index(case))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return (
        normal(batch, depth, *output_size),
        normal(batch, depth, *input_size),
        normal(batch, channels, *input_size),
        2 * normal(batch, groups, k**2, 2, *output_size),  # many leave the map
        normal(heads, k**2, depth // heads) if has_bias else None,
        heads,
    )


def assert_same(inputs: tuple, rtol: float, atol: float) -> None:
    """Output and all gradients are those of plain PyTorch, NaN where these are."""
    output = triton_backend.forward(*inputs)
    expected = plain.forward(*inputs)
    torch.testing.assert_close(output, expected, rtol=rtol, atol=atol, equal_nan=True)
    generator = torch.Generator().manual_seed(0)
    grad_output = torch.randn(output.shape, generator=generator).to(output.dtype)
    grads = triton_backend.backward(grad_output, *inputs)
    for name, grad, expected in zip(
        ("query", "key", "value", "offsets", "bias"),
        grads,
        plain.backward(grad_output, *inputs),
        strict=True,
    ):
        torch.testing.assert_close(
            grad, expected, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(autouse=True)
def large_tiles(request, monkeypatch):
    """One program for many pixels: the interpreter's time goes with their number."""
    if "small_tiles" in request.keywords:
        return
    for kernel, size in (
        (triton_kernels.forward_kernel, "BLOCK_PIXELS"),
        (triton_kernels.backward_pixels_kernel, "BLOCK_PIXELS"),
        (triton_kernels.backward_source_kernel, "BLOCK_SAMPLES"),
    ):
        monkeypatch.setattr(kernel, "configs", [triton.Config({size: 256})])


@pytest.mark.parametrize("case", CASES)
def test_matches_plain_pytorch(case):
    assert triton_kernels.INTERPRETED
    assert_same(draw(case), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", ["default", "heads across groups", "five by five"])
def test_matches_the_loops(case):
    inputs = draw(case)
    arrays = [i.numpy() if torch.is_tensor(i) else i for i in inputs]
    expected = torch.from_numpy(oracle.attention(*arrays))
    torch.testing.assert_close(triton_backend.forward(*inputs), expected, rtol=1e-10, atol=1e-12)
