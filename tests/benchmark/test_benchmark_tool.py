import json

import pytest
import torch
from lda_aqu.benchmark.implementations import PUBLISHED, Implementation
from lda_aqu.ops import BACKENDS

TINY = ("--size", "32x64", "--repeats", 1, "--threads", 1)
NO_SWEEPS = ("--sweep-sides", "--sweep-channels")
PLAIN = "LDAAQU:backend=plain"


def test_modules(run_tool, tmp_path, capsys):
    status = run_tool(
        *("benchmark.py", "modules", *TINY, "--only", PLAIN, "--batch-size", 2),
        *("--sweep-sides", 4, "--sweep-channels", "--output", tmp_path),
        *("--memory-format", "channels_last", "--autocast", "bfloat16"),
    )
    assert status == 0
    content = json.loads((tmp_path / "modules.json").read_text())
    machine = content["machine"]
    assert (machine["threads"], machine["batch_size"], machine["autocast"]) == (1, 2, "bfloat16")
    assert [(a["step"], a["dtype"]) for a in content["agreement"]] == [
        (step, dtype)
        for step in ("P5->P4", "P4->P3", "P3->P2", "256x4x4")
        for dtype in ("float64", "bfloat16")
    ]
    assert len(content["fpn"]) == 3 * 2 * 2  # steps, implementations, passes
    for row in content["fpn"]:
        assert 0 < row["min ms"] <= row["median ms"] <= row["max ms"]
        assert (row["speed-up"] is None) == (row["implementation"] != PLAIN)
        backward = row["pass"] != "forward"
        assert (row["GFLOPs"] is None) == (row["% of roofline"] is None) == backward
    published, plain = content["fpn"][-2:]
    assert published["implementation"] == PUBLISHED
    assert published["held MiB"] > plain["held MiB"]
    assert "channels" not in content
    assert "Agreement with the published algorithm" in capsys.readouterr().out
    assert "| P3->P2 |" in (tmp_path / "modules.md").read_text()


def test_nothing_is_timed_where_results_differ(run_tool, tmp_path, capsys, monkeypatch):
    build = Implementation.build

    def build_broken(self, channels):
        module = build(self, channels)
        if not self.is_reference:
            module.register_forward_hook(lambda module, inputs, output: 1.001 * output)
        return module

    monkeypatch.setattr(Implementation, "build", build_broken)
    args = ("--only", PLAIN, "Nearest", "--output", tmp_path / "out")
    status = run_tool("benchmark.py", "modules", *TINY, *NO_SWEEPS, *args)
    assert status == 1
    out, err = capsys.readouterr()
    assert "error: these results differ, so nothing is timed" in err
    assert PLAIN in err and "0.001" in err
    assert "speed-up" not in out and "median" not in out
    assert not list((tmp_path / "out").iterdir())


def test_models(run_tool, tiny_config, tmp_path):
    baseline = tmp_path / "baseline.yaml"
    baseline.write_text(f'_BASE_: "{tiny_config}"\nMODEL: {{FPN: {{UPSAMPLER: "Nearest"}}}}\n')
    status = run_tool(
        *("benchmark.py", "models", "--config-file", tiny_config, "--baseline", baseline, *TINY),
        *(
            "--batch-size",
            2,
            "--autocast",
            "bfloat16",
            "--output",
            tmp_path / "out",
            "MODEL.ROI_HEADS.NUM_CLASSES",
            3,
        ),
    )
    assert status == 0
    rows = json.loads((tmp_path / "out" / "models.json").read_text())["models"]
    assert [(row["part"], row["image"], row["model"]) for row in rows] == [
        (part, "32x64", model)
        for part in ("backbone", "detector", "training")
        for model in ("baseline", "tiny")
    ]
    assert {row["over first"] for row in rows if row["model"] == "baseline"} == {"+0.0%"}
    assert all(row["peak MiB"] > 0 for row in rows if row["part"] == "training")


@pytest.mark.parametrize(
    "args, message",
    [
        (("modules", "--only", "Nearset"), "unknown upsampler 'Nearset'"),
        (("modules", "--only", "LDAAQU:reductoin=2", *NO_SWEEPS), "did you mean reduction"),
        (("modules", "--size", "0x32"), "size '0x32': give positive HEIGHTxWIDTH"),
        (("modules", "--sweep-sides", 0), "must be positive"),
        (("modules", "--repeats", 0), "--repeats 0: must be at least 1"),
        (("modules", "--batch-size", -1), "--batch-size -1: must be at least 1"),
        (("models", "--config-file", "a", "--baseline", "b", "--size", "8x8,0x5"), "size '0x5'"),
        (("models", "--config-file", "no.yaml", "--baseline", "none.yaml"), "' does not exist"),
        (("models", "--config-file", "a.yaml", "--baseline", "./a.yaml"), "with itself"),
    ],
)
def test_bad_input_is_one_line(run_tool, tmp_path, capsys, args, message):
    status = run_tool("benchmark.py", *args, "--output", tmp_path)
    assert status == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert message in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line(run_tool, tmp_path, capsys):
    args = ("modules", "--only", "Nearest", "--device", "cuda", "--output", tmp_path)
    assert run_tool("benchmark.py", *args) == 2
    assert "--device cuda: this machine has no usable GPU" in capsys.readouterr().err


def test_a_backend_that_cannot_run_is_one_line(run_tool, capsys):
    device = torch.device("cuda")
    reasons = {name: backend.unavailable(device) for name, backend in BACKENDS.items()}
    name, reason = next((name, reason) for name, reason in reasons.items() if reason)
    only = f"LDAAQU:backend={name}"
    assert run_tool("benchmark.py", "modules", "--only", only, "--device", "cuda") == 2
    assert f"{name!r} cannot run on cuda: {reason}" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_one_line(run_tool, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run_tool("benchmark.py", "modules", *TINY, "--output", tmp_path / "file") == 2
    assert "cannot be written" in capsys.readouterr().err
