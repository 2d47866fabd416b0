import re
from functools import partial

import lda_aqu.modeling  # noqa: F401  (registers the builders)
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from lda_aqu.engine import load_config


@pytest.fixture
def run(run_tool, tiny_config, tmp_path):
    """Run the tool with random weights of a Nearest baseline; return its exit status."""
    baseline = tmp_path / "baseline.yaml"
    baseline.write_text(f'_BASE_: "{tiny_config}"\nMODEL: {{FPN: {{UPSAMPLER: "Nearest"}}}}\n')
    torch.manual_seed(0)
    DetectionCheckpointer(build_model(load_config(str(baseline), [])), str(tmp_path)).save("near")
    options = ("--config-file", tiny_config, "--baseline", baseline, "--limit", 2)
    return partial(run_tool, "compare_pyramids.py", *options, "--weights", tmp_path / "near.pth")


def changes(capsys) -> dict[str, float]:
    printed = capsys.readouterr().out
    assert "on 2 images of tiny" in printed
    return {level: float(x) for level, x in re.findall(r"^(p\d) ([\d.]+)$", printed, re.MULTILINE)}


def test_upsamplers_in_the_place_of_nearest(run, capsys):
    assert not run("MODEL.FPN.UPSAMPLER", "Nearest")
    assert changes(capsys) == dict.fromkeys(["p2", "p3", "p4", "p5", "p6"], 0)
    for opts in (("MODEL.FPN.UPSAMPLER", "Bilinear"), ("MODEL.LDA_AQU.INIT", "bilinear"), ()):
        assert not run(*opts)
        change = changes(capsys)
        assert change["p5"] == change["p6"] == 0  # nothing is upsampled before them
        assert 0 < change["p4"] < 1 and change["p2"] > 0


def test_weights_of_both_models_are_trusted(run, tmp_path):
    file = tmp_path / "near.pth"
    torch.save(torch.load(file) | {"meta": re.compile("x")}, file)
    assert run() == 2
    assert not run("MODEL.TRUST_WEIGHTS", "True")


@pytest.mark.parametrize(
    "args, message",
    [
        (["--limit", 0], "--limit 0: must be at least 1"),
        (["DATASETS.TEST", "()"], "DATASETS.TEST is empty"),
        (["--weights", "gone.pth", "DATASETS.TEST", "()"], "gone.pth"),
        (["--baseline-weights", "gone.pth", "DATASETS.TEST", "()"], "gone.pth"),
        (["--baseline", "gone.yaml"], "gone.yaml"),
        (["MODEL.FPN.OUT_CHANNELS", 32], "of another architecture"),
    ],
)
def test_a_mistake_is_one_line(run, args, message, capsys):
    assert run(*args) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
