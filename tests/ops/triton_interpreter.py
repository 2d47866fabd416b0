"""What tests under Triton's interpreter share: it must be on from the start of the process."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from lda_aqu.ops.triton import configurations
from triton.runtime import interpreter

DOUBLE = torch.float64
TOLERANCES = {DOUBLE: 1e-10, torch.float32: 3e-5, torch.float16: 6e-3, torch.bfloat16: 4e-2}


def set_blocks(monkeypatch, **sizes: int) -> None:
    """One row for each kernel, with blocks of these sizes where it has any of that name."""
    for kernel, (*_, row) in list(configurations.TABLE.items()):
        blocks = {name: sizes.get(name, size) for name, size in row.blocks.items()}
        monkeypatch.setitem(configurations.TABLE, kernel, (replace(row, blocks=blocks),))


@pytest.fixture(autouse=True)
def large_blocks(monkeypatch):
    """The interpreter's time goes with the number of programs, not with their size."""
    set_blocks(monkeypatch, BLOCK_PIXELS=64)


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch):
    """The interpreter has bfloat16 as integers, and multiplies matrices of these."""

    def values(tile):
        if tile.dtype.scalar.is_bf16():
            return (tile.data.astype(np.uint32) << 16).view(np.float32)
        return tile.data

    def create_dot(builder, a, b, sums, *options):
        product = np.matmul(values(a), values(b), dtype=sums.data.dtype)
        return interpreter.TensorHandle(product + sums.data, sums.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def exact(inputs: Sequence) -> list:
    """In float64."""
    return [i.double() if isinstance(i, torch.Tensor) else i for i in inputs]


def assert_all_close(
    actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float
) -> None:
    """Relative to the largest; NaN where it is expected; as dense, and in the same order."""
    for i, (result, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert result.shape == wanted.shape
        for memory_format in (torch.contiguous_format, torch.channels_last):
            is_map = wanted.dim() == 4 and wanted.numel()
            if is_map and wanted.is_contiguous(memory_format=memory_format):
                assert result.is_contiguous(memory_format=memory_format)
        finite = wanted[wanted.isfinite()]
        # What is all but zero is what rounding left.
        largest = max(finite.abs().max().item(), 0.01) if finite.numel() else 1.0
        torch.testing.assert_close(
            result.double(),
            wanted,
            rtol=0,
            atol=tolerance * largest,
            equal_nan=True,
            msg=lambda m, i=i: f"result {i}: {m}",
        )
