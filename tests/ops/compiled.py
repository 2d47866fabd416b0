"""What tests of compiled Triton kernels share."""

import re

import pytest
import torch
from lda_aqu.benchmark.kernel_compiler import SM_90, compile_for, resources
from lda_aqu.benchmark.kernel_launches import Launch, Recording
from lda_aqu.ops import triton as backend

needs_compiler = pytest.mark.skipif(
    backend.is_interpreted(), reason="TRITON_INTERPRET is set: kernels are not compiled"
)

at_shipped_widths = pytest.mark.parametrize(
    "depth, dtype",
    [
        (64, torch.float32),
        (16, torch.bfloat16),
        pytest.param(64, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param(16, torch.float32, marks=pytest.mark.slow),
    ],
)


def spilling(record: Recording) -> list[str]:
    """The kernels that spill registers on Hopper."""
    return [launched.kernel.__name__ for launched in record.launches if resources(launched).spilled]


def lanes_of_loads(launched: Launch) -> set[tuple[int, ...]]:
    """Of the loads of tiles, how many lanes of a warp go along each axis on Hopper."""
    code = compile_for(SM_90, launched).asm["ttgir"]
    layouts = re.findall(r"^(#\w+) = .*threadsPerWarp = \[(\d+(?:, \d+)+)\]", code, re.MULTILINE)
    of_loads = set(re.findall(r"tt\.load .*x!tt\.ptr<\w+>, (#\w+)>", code))
    return {tuple(map(int, n.split(", "))) for name, n in layouts if name in of_loads}
