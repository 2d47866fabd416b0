"""Triton's kernels: under its interpreter, and compiled for GPUs that need not be here."""

# ruff: noqa: E402

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

triton = pytest.importorskip("triton")  # installed with PyTorch for GPUs alone

from compiled import at_shipped_widths, lanes_of_loads, needs_compiler, spilling
from lda_aqu import LDAAQU
from lda_aqu.benchmark.kernel_compiler import GFX942, SM_80, compile_for
from lda_aqu.benchmark.kernel_launches import HOPPER, recording
from lda_aqu.ops import BACKENDS, backends, operator
from lda_aqu.ops import triton as backend
from lda_aqu.ops.triton import ahead, attention, launch
from paths import ROOT

pytestmark = [
    pytest.mark.usefixtures("new_triton_cache"),
    pytest.mark.cpu,  # kernels that run on a GPU are tested with every other backend
]


def test_under_the_interpreter():
    """Correctness: the tests of triton_interpreted*.py, which need TRITON_INTERPRET=1."""
    files = map(str, sorted(Path(__file__).parent.glob("triton_interpreted*.py")))
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def inputs_of(heads: int, groups: int, depth: int, channels: int, dtype, has_bias: bool) -> tuple:
    """Query and key channels-last, as the projections make them; the value contiguous."""
    query, key, value = (
        torch.zeros(1, c, size, size, dtype=dtype)
        for c, size in ((depth, 8), (depth, 4), (channels, 4))
    )
    query, key = (x.contiguous(memory_format=torch.channels_last) for x in (query, key))
    offsets = torch.zeros(1, groups, 9, 2, 8, 8, dtype=torch.promote_types(dtype, torch.float32))
    bias = torch.zeros(heads, 9, depth // heads) if has_bias else None
    return query, key, value, offsets, bias, heads


def run(*shapes) -> None:
    inputs = inputs_of(*shapes)
    (output,) = attention.local_deformable_attention(*inputs)
    attention.local_deformable_attention_backward([output], *inputs)


@needs_compiler
@at_shipped_widths
def test_spills_no_registers(depth, dtype):
    """On Hopper, at the widths of the shipped configurations."""
    with recording() as record:
        run(1, 2, depth, 256, dtype, True)
    assert not spilling(record)


@needs_compiler
def test_compiles_loads_in_which_few_lanes_share_a_pixel():
    """8 lanes read 16 bytes each of a row of channels, others read other pixels."""
    with recording() as record:
        run(1, 2, 64, 256, torch.float32, True)
    for launched in record.launches:
        tiles = {lanes for lanes in lanes_of_loads(launched) if len(lanes) == 3}
        assert tiles <= {(1, 4, 8), (1, 32, 1)}, launched.kernel.__name__  # or contiguous maps


@needs_compiler
@pytest.mark.parametrize(
    "target, binary, shapes, max_int32_elements",
    [
        (SM_80, "cubin", (2, 1, 4, 2, torch.float64, True), 0),
        (GFX942, "hsaco", (2, 3, 6, 12, torch.bfloat16, False), 2**31),
    ],
    ids=["sm_80 float64, 64-bit", "gfx942 bfloat16"],
)
def test_compiles(monkeypatch, target, binary, shapes, max_int32_elements):
    """What the interpreter lets pass: wrong types, loops whose variables change theirs."""
    monkeypatch.setattr(launch, "MAX_INT32_ELEMENTS", max_int32_elements)
    with recording((8, 0) if target.backend == "cuda" else (0, 0)) as record:
        run(*shapes)
    for launched in record.launches:
        assert compile_for(target, launched).asm[binary]


@needs_compiler
def test_nothing_is_tuned_unless_asked_for(monkeypatch):
    tuned = []

    def tune(tuner, *_, **constants) -> None:
        tuned.append(tuner.fn.__name__)
        json.dumps([constants[name] for name in tuner.keys])  # as Triton writes them to disk

    monkeypatch.setattr(triton.runtime.Autotuner, "run", tune)

    def launched() -> list[str]:
        tuned.clear()
        with recording() as record:
            run(1, 1, 2, 2, torch.float32, False)
        return [launched.kernel.__name__ for launched in record.launches]

    kernels = launched()
    assert kernels and not tuned
    monkeypatch.setenv("LDA_AQU_TRITON_TUNE", "1")
    assert not launched() and tuned == kernels
    torch.use_deterministic_algorithms(True)
    try:
        assert launched() == kernels and not tuned
    finally:
        torch.use_deterministic_algorithms(False)


@needs_compiler
def test_compiles_ahead_all_that_is_launched(monkeypatch):
    """Threads of their own compile it, with the types that it is launched with, the gradient's too.

    The compiler itself is left out, and so is the GPU.
    """
    compiled, launched = [], []

    def compile_(kernel, key, signature, device, *_) -> SimpleNamespace:
        compiled.append((kernel.__name__, threading.current_thread().name))
        result = SimpleNamespace(
            launch_metadata=lambda *_: None,
            run=lambda *_: launched.append(kernel.__name__),
            function=None,
            packed_metadata=None,
        )
        kernel.device_caches[device][0][key] = result
        return result

    device = 1000  # that no other test has
    driver = SimpleNamespace(
        get_current_target=lambda: SM_80,
        get_current_device=lambda: device,
        get_current_stream=lambda device: 0,
    )
    forward = operator._Differentiable.forward

    def prepare_first(ctx, operator, *inputs):
        operator.prepare(*inputs)  # as it is for tensors on a GPU
        return forward(ctx, operator, *inputs)

    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    monkeypatch.setattr(triton.JITFunction, "_do_compile", compile_)
    monkeypatch.setattr(operator._Differentiable, "forward", staticmethod(prepare_first))
    monkeypatch.setattr(launch, "_capability", lambda device: HOPPER)
    monkeypatch.setitem(BACKENDS, "triton", replace(BACKENDS["triton"], unavailable=lambda d: ""))
    backends._candidates.cache_clear()
    try:
        upsampler = LDAAQU(16, backend="triton")
        output = upsampler(torch.randn(2, 16, 3, 5, requires_grad=True))
        output.backward(torch.ones_like(output))
    finally:
        backends._candidates.cache_clear()
    assert len(launched) == 19
    assert {kernel for kernel, _ in compiled} == {*launched}
    assert {thread.rpartition("_")[0] for _, thread in compiled} == {"lda_aqu_compiler"}


@needs_compiler
def test_a_rehearsal_that_fails_is_logged(caplog):
    def fail() -> None:
        raise ValueError("what went wrong")

    ahead.prepare(torch.device("cpu"), fail)
    assert "not compiled ahead" in caplog.text and "what went wrong" in caplog.text


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
    monkeypatch.setattr(triton, "__version__", "3.4.0")
    assert backend.unavailable(gpu) == "Triton 3.4.0 is older than 3.5"


def test_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    reason = backend.unavailable(torch.device("cuda"))
    assert reason.startswith("Triton cannot be imported: ")
