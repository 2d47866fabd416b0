import json

import pytest
import torch
from lda_aqu.benchmark.implementations import PUBLISHED, Implementation
from lda_aqu.ops.backends import BACKENDS
from PIL import Image

TINY = ("--size", "32x64", "--repeats", 1, "--threads", 1)
NO_SWEEPS = ("--sweep-sides", "--sweep-channels")


def test_modules(run, tmp_path, capsys):
    status = run(
        *("benchmark.py", "modules", *TINY, "--only", "LDAAQU:backend=plain", "Nearest"),
        *("--sweep-sides", 4, "--sweep-channels", "--output", tmp_path),
        *("--memory-format", "channels_last"),
    )
    assert status == 0
    content = json.loads((tmp_path / "modules.json").read_text())
    assert content["machine"]["threads"] == 1
    assert content["machine"]["memory_format"] == "channels_last"
    assert [(a["step"], a["dtype"]) for a in content["agreement"]] == [
        (step, dtype)
        for step in ("P5->P4", "P4->P3", "P3->P2", "4x4")
        for dtype in ("float64", "float32")
    ]
    assert len(content["fpn"]) == 3 * 3 * 2  # steps, implementations, passes
    for row in content["fpn"]:
        assert 0 < row["seconds"]["min"] <= row["seconds"]["median"] <= row["seconds"]["max"]
        assert (row["speedup"] is None) == (row["implementation"] != "LDAAQU:backend=plain")
        assert (row["flops"] is None) == (row["roofline"] is None) == row["backward"]
    assert content["fpn"][-3]["implementation"] == PUBLISHED
    assert content["fpn"][-3]["held_bytes"] > content["fpn"][-2]["held_bytes"]
    printed = capsys.readouterr().out
    assert "Agreement with the published algorithm" in printed
    assert "Steps of the pyramid" in (tmp_path / "modules.md").read_text()
    for name in ("fpn", "resolution"):
        with Image.open(tmp_path / f"modules_{name}.png") as picture:
            assert picture.width > 500
    assert not (tmp_path / "modules_channels.png").exists()


def test_nothing_is_timed_where_results_differ(run, tmp_path, capsys, monkeypatch):
    build = Implementation.build

    def build_broken(self, channels):
        module = build(self, channels)
        if not self.reference:
            module.register_forward_hook(lambda module, inputs, output: 1.001 * output)
        return module

    monkeypatch.setattr(Implementation, "build", build_broken)
    only = ("--only", "LDAAQU:backend=plain", "Nearest")
    status = run(
        "benchmark.py", "modules", *TINY, *only, *NO_SWEEPS, "--output", tmp_path / "output"
    )
    assert status == 1
    out, err = capsys.readouterr()
    assert "error: results differ, so nothing is timed: LDAAQU:backend=plain at P5->P4 in " in err
    assert "off by 1.0e-03" in err
    assert "speed-up" not in out and "median" not in out
    assert not list((tmp_path / "output").iterdir())


def test_models(run, tiny_config, tmp_path, capsys):
    baseline = tmp_path / "baseline.yaml"
    baseline.write_text(f'_BASE_: "{tiny_config}"\nMODEL: {{FPN: {{UPSAMPLER: "Nearest"}}}}\n')
    status = run(
        *("benchmark.py", "models", "--config-file", tiny_config, "--baseline", baseline, *TINY),
        *("--batch-size", 2, "--size", "32x64,64x96", "--output", tmp_path / "out"),
        *("MODEL.ROI_HEADS.NUM_CLASSES", 3),
    )
    assert status == 0
    rows = json.loads((tmp_path / "out" / "models.json").read_text())["models"]
    assert [(row["part"], row["image"], row["model"]) for row in rows] == [
        (part, size, model)
        for part in ("backbone", "detector", "training")
        for size in ("32x64", "64x96")
        for model in ("baseline", "tiny")
    ]
    assert {row["relative"] for row in rows if row["model"] == "baseline"} == {1}
    assert all(row["peak_bytes"] > 0 for row in rows if row["part"] == "training")
    assert "Models, 2 images, contiguous" in capsys.readouterr().out
    assert (tmp_path / "out" / "models.png").exists()


@pytest.mark.parametrize(
    "args, message",
    [
        (("modules", "--only", "Nearset"), "unknown upsampler 'Nearset'"),
        (("modules", "--only", "LDAAQU:reductoin=2", *NO_SWEEPS), "did you mean reduction"),
        (("modules", "--size", "0x32"), "size '0x32': give positive HEIGHTxWIDTH"),
        (("modules", "--sweep-sides", 0), "must be positive"),
        (("modules", "--repeats", 0), "--repeats 0: must be at least 1"),
        (("modules", "--threads", -1), "--threads -1: must be at least 1"),
        (("models", "--config-file", "no.yaml", "--baseline", "no.yaml"), "'no.yaml' does not"),
        (
            ("models", "--config-file", "a", "--baseline", "b", "--batch-size", 0),
            "--batch-size 0: must be at least 1",
        ),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, capsys, args, message):
    status = run("benchmark.py", *args, "--output", tmp_path)
    assert status == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert message in line


def test_a_backend_that_cannot_run_is_one_line(run, tmp_path, capsys):
    name, reason = next(
        (name, reason)
        for name, backend in BACKENDS.items()
        if (reason := backend.unavailable(torch.device("cuda")))
    )
    assert (
        run("benchmark.py", "modules", "--only", f"LDAAQU:backend={name}", "--device", "cuda") == 2
    )
    assert f"backend {name!r} cannot run on cuda: {reason}" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_one_line(run, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run("benchmark.py", "modules", *TINY, "--output", tmp_path / "file") == 2
    assert "cannot be written to" in capsys.readouterr().err
