"""What LDA-AQU launches on a GPU, counted without one."""

import json
import sys

import pytest
import torch

pytest.importorskip("triton")  # installed with PyTorch for GPUs alone

from lda_aqu.benchmark import kernel_table
from lda_aqu.benchmark.kernel_compiler import Resources
from lda_aqu.benchmark.kernel_launches import recording
from lda_aqu.ops.triton import is_interpreted
from lda_aqu.upsamplers import build_upsampler

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(is_interpreted(), reason="TRITON_INTERPRET is set: nothing is launched"),
]
FLOAT, INT, LONG = 4, 4, 8  # bytes


def record(memory_format, dtype=torch.float32):
    """The operations of a module, forward and backward: 2 maps of 256 channels, 4x5 to 8x10."""
    module = build_upsampler("LDAAQU", 256, backend="triton")
    x, grad = (
        torch.zeros(2, 256, *size, dtype=dtype).contiguous(memory_format=memory_format)
        for size in ((4, 5), (8, 10))
    )
    inputs = [x.requires_grad_(), *module.parameters()]
    with recording() as forward, torch.autocast("cpu", dtype, dtype != torch.float32):
        output = module(x, (8, 10))
    with recording() as backward:
        torch.autograd.grad(output, inputs, grad)
    return forward, backward


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("copies", [0, 1], ids=["channels_last", "contiguous"])
def test_number_of_launches(copies, dtype):
    """At small maps the time is launches; of maps, only contiguous ones are copied."""
    memory_format = torch.contiguous_format if copies else torch.channels_last
    for operations, launches in zip(record(memory_format, dtype), (6, 19), strict=True):
        assert len(operations.names) == launches + copies
        assert operations.names.count("clone") == copies


def test_bytes():
    """What is read and written, by kernels and by operators."""
    forward, backward = record(torch.contiguous_format)
    moved = {o.name: (o.read, o.written) for o in forward.operations + backward.operations}
    pixels, resized = 2 * 4 * 5, 2 * 8 * 10
    x, query, output = 256 * pixels * FLOAT, 64 * pixels * FLOAT, 256 * resized * FLOAT
    offsets, samples = resized * 2 * 9 * 2 * FLOAT, resized * 2 * 9
    assert moved["project_kernel"] == (x + (2 * 256 + 128 * 256) * FLOAT, 2 * query)
    assert moved["forward_kernel"] == (
        4 * query + query + x + offsets + 9 * 64 * FLOAT,
        output + resized * 9 * FLOAT,  # and the attention
    )
    assert moved["samples_kernel"] == (offsets, samples * (2 * FLOAT + INT))
    assert moved["sort"] == (samples * INT, samples * (INT + LONG))
    assert moved["clone"] == (x, x)
    assert moved["add"] == (2 * x, x)
    # Kernels write columns of a table, of which this one reads all.
    parts = 5
    read, written = moved["sum_parts_kernel"]
    assert written == (32 * 9 + 2 * 32 + 18 * 32 * 9 + 18) * FLOAT and read == parts * written


def test_table(run_tool, tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_table, "resources", lambda launch: Resources(128, 40, 0, 1024))
    assert run_tool("benchmark.py", "kernels", "--size", "32x64", "--output", tmp_path) == 0
    content = json.loads((tmp_path / "kernels.json").read_text())
    assert content["machine"]["batch_size"] == 2
    rows = {(row["pass"], row["operation"]): row for row in content["kernels"]}
    forward, backward = content["kernel_sums"]
    assert forward["pass"] == "forward" and forward["kernels"] == 5
    assert sum(row["MB read"] for row in rows.values() if row["pass"] == "forward") == (
        pytest.approx(forward["MB read"])
    )
    assert rows["forward", "forward_kernel"]["registers"] == 40
    assert rows["backward", "sort"]["programs"] is None
    # Input, output and as much of gradients; 39,410 parameters and theirs.
    x, output, parameters = (FLOAT * n / 1e6 for n in (2 * 256 * 4 * 8, 2 * 256 * 8 * 16, 39410))
    assert forward["least MB"] == pytest.approx(x + parameters + output)
    assert backward["least MB"] == pytest.approx(2 * (x + parameters) + output)
    assert (tmp_path / "kernels.md").read_text().count("| backward |") == 20 + 1


def test_interpreted_is_one_line(run_tool, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert run_tool("benchmark.py", "kernels", "--output", tmp_path) == 2
    assert "error: TRITON_INTERPRET=1: kernels are not compiled" in capsys.readouterr().err


def test_without_triton_is_one_line(run_tool, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert run_tool("benchmark.py", "kernels", "--output", tmp_path) == 2
    assert "error: kernels are compiled by Triton, which is missing" in capsys.readouterr().err
