"""Triton's kernels: under its interpreter, and compiled for GPUs that need not be here."""

# ruff: noqa: E402

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")  # installed with PyTorch for GPUs alone

from lda_aqu.ops import triton as backend
from lda_aqu.ops.triton import attention, attention_kernels
from paths import ROOT
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import mangle_type

pytestmark = pytest.mark.cpu  # kernels that run on a GPU are tested with every other backend

needs_compiler = pytest.mark.skipif(
    backend.is_interpreted(), reason="TRITON_INTERPRET is set: kernels are not compiled"
)


def test_under_the_interpreter():
    """Correctness: the tests of triton_interpreted.py, which need TRITON_INTERPRET=1."""
    tests = Path(__file__).with_name("triton_interpreted.py")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture
def launches(monkeypatch):
    """What is launched, (kernel, arguments by name, compile options), in the place of launching."""
    recorded = []

    def record(kernel, *arguments, grid, warmup, **constants):
        values = dict(zip(kernel.arg_names, arguments, strict=False))
        options = {k: v for k, v in constants.items() if k not in kernel.arg_names}
        values |= {k: v for k, v in constants.items() if k in kernel.arg_names}
        recorded.append((kernel, values, options))

    monkeypatch.setattr(triton.JITFunction, "run", record)
    torch.use_deterministic_algorithms(True)
    yield recorded
    torch.use_deterministic_algorithms(False)


def run(heads: int, groups: int, depth: int, channels: int, dtype, has_bias: bool) -> None:
    query, key, value = (
        torch.zeros(1, c, size, size, dtype=dtype)
        for c, size in ((depth, 8), (depth, 4), (channels, 4))
    )
    offsets = torch.zeros(1, groups, 9, 2, 8, 8, dtype=torch.promote_types(dtype, torch.float32))
    bias = torch.zeros(heads, 9, depth // heads) if has_bias else None
    inputs = (query, key, value, offsets, bias, heads)
    output = attention.local_deformable_attention(*inputs)
    attention.local_deformable_attention_backward(output, *inputs)


def compile_for(target: GPUTarget, kernel: triton.JITFunction, values: dict, options: dict) -> dict:
    """Compile as Triton would at a launch with these values."""
    constants = {
        p.name: values[p.name]
        for p in kernel.params
        if p.is_constexpr
        or values[p.name] is None
        or (isinstance(values[p.name], int) and values[p.name] == 1 and not p.do_not_specialize)
    }
    signature = {
        name: "constexpr" if name in constants else mangle_type(values[name])
        for name in kernel.arg_names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=target, options=options).asm


@needs_compiler
@pytest.mark.parametrize(
    "target, binary, shapes, max_int32_elements",
    [
        (GPUTarget("cuda", 80, 32), "cubin", (1, 2, 64, 256, torch.float32, True), 2**31),
        (GPUTarget("cuda", 90, 32), "cubin", (2, 3, 6, 12, torch.bfloat16, False), 2**31),
        (GPUTarget("cuda", 80, 32), "cubin", (2, 1, 4, 2, torch.float64, True), 0),
        (GPUTarget("hip", "gfx942", 64), "hsaco", (1, 2, 16, 64, torch.float16, True), 2**31),
    ],
    ids=["sm_80 float32", "sm_90 bfloat16", "sm_80 float64, 64-bit", "gfx942 float16"],
)
def test_compiles(launches, monkeypatch, tmp_path, target, binary, shapes, max_int32_elements):
    """What the interpreter lets pass: wrong types, loops whose variables change theirs."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(attention, "MAX_INT32_ELEMENTS", max_int32_elements)
    run(*shapes)
    assert [kernel.__name__ for kernel, *_ in launches] == [
        "forward_kernel",
        "backward_pixels_kernel",
        "cells_kernel",
        "backward_source_kernel",
        "backward_source_kernel",
    ]
    for launch in launches:
        assert compile_for(target, *launch)[binary]


@needs_compiler
def test_deterministic_algorithms_fix_the_tiles(launches, monkeypatch):
    """Else these are chosen by measured times, and the order of sums with them."""
    autotuned = []
    monkeypatch.setattr(
        triton.runtime.Autotuner, "run", lambda kernel, *_, **__: autotuned.append(kernel)
    )
    run(1, 1, 2, 2, torch.float32, False)
    assert not autotuned
    torch.use_deterministic_algorithms(False)
    run(1, 1, 2, 2, torch.float32, False)
    assert autotuned == [
        attention_kernels.forward_kernel,
        attention_kernels.backward_pixels_kernel,
        attention_kernels.backward_source_kernel,
        attention_kernels.backward_source_kernel,
    ]


@needs_compiler
def test_says_why_it_is_unavailable(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert backend.unavailable(cpu) == "Triton compiles for GPUs, not for cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backend.unavailable(gpu) == "no GPU is available to PyTorch"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "An old GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert backend.unavailable(gpu) == "An old GPU has a compute capability below 8.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert backend.unavailable(gpu) == ""


def test_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    reason = backend.unavailable(torch.device("cuda"))
    assert reason.startswith("Triton cannot be imported: ")
