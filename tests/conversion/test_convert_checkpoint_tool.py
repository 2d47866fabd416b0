"""tools/convert_checkpoint.py as a user runs it, and train_net.py on what it writes."""

import json
import subprocess
from functools import partial

import forked
import pytest
import torch
from paths import ROOT
from published_checkpoint import published_checkpoint, published_shapes, random_weights

OPTS = ("MODEL.FPN.TOPOLOGY", "published", "MODEL.FPN.NORM", "")


@pytest.fixture
def run(run_tool):
    """Run the tool as a command; return its exit status."""
    return partial(run_tool, "convert_checkpoint.py")


@pytest.fixture
def tiny_published(tmp_path):
    """A published Mask R-CNN of the size of the tiny config."""
    shapes = published_shapes(
        stem=8,
        res2=16,
        channels=16,
        fc_dim=32,
        num_classes=2,
        mask_channels=16,
    )
    path = tmp_path / "published.pth"
    torch.save(published_checkpoint(random_weights(shapes)), path)
    return path


def evaluate(config, weights, output, *opts: object) -> subprocess.CompletedProcess:
    args = ["--config-file", config, "--eval-only", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", output]
    return forked.run(ROOT / "train_net.py", *args, *opts)


def test_a_converted_checkpoint_is_evaluated(run, tiny_config, tiny_published, tmp_path, capsys):
    ours = tmp_path / "ours.pth"
    arguments = ("--config-file", tiny_config, "--input", tiny_published, "--output", ours, *OPTS)
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    state = torch.load(tiny_published)["state_dict"]
    assert all(any(line.startswith(f"{n} ") for line in printed.splitlines()) for n in state)
    converted = len(torch.load(ours)["model"])
    # The constants of the four upsamplers, and meta and optimizer; its BatchNorm is not frozen.
    assert f"ours.pth: {converted} converted, 6 left out, 0 added" in printed
    assert converted + 4 == len(state)

    result = evaluate(
        tiny_config, ours, tmp_path / "evaluated", *OPTS, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "keep their initial values" not in result.stdout
    assert "not found in the checkpoint" not in result.stdout
    results = tmp_path / "evaluated" / "inference" / "coco_instances_results.json"
    assert {"bbox", "segmentation"} <= json.loads(results.read_text())[0].keys()


def test_there_and_back(run, tiny_config, tiny_published, tmp_path):
    ours, back = tmp_path / "ours.pth", tmp_path / "back.pth"
    common = ("--config-file", tiny_config)
    assert run(*common, "--input", tiny_published, "--output", ours, *OPTS) == 0
    assert run(*common, "--input", ours, "--output", back, "--to", "mmdetection", *OPTS) == 0
    state = torch.load(back)["state_dict"]
    for name, value in torch.load(tiny_published)["state_dict"].items():
        assert name.endswith("base_offset") or torch.equal(state.pop(name), value), name
    assert not state


def test_upsamplers_into_another_checkpoint(run, tiny_config, tiny_published, tmp_path, capsys):
    """All but the upsamplers stay as they are in it, which may lack some: a Nearest model's do."""
    ours, other, merged = (tmp_path / f"{name}.pth" for name in ("ours", "other", "merged"))
    common = ("--config-file", tiny_config)
    assert run(*common, "--input", tiny_published, "--output", ours, *OPTS) == 0
    weights = torch.load(ours)["model"]
    base = {
        n: torch.zeros_like(v)
        for n, v in weights.items()
        if "upsample" not in n or "upsample2" in n
    }
    only = ("--upsamplers-only", "--into", other)
    args = (*common, "--input", tiny_published, "--output", merged, *only, *OPTS)
    torch.save({"model": {n: v for n, v in base.items() if "roi_heads" not in n}}, other)
    assert run(*args) == 2
    expected = "other.pth' is of another model than the config's: it lacks 20 of "
    assert expected in capsys.readouterr().err and not merged.exists()
    torch.save({"model": base, "iteration": 7}, other)
    assert run(*args) == 0
    result = torch.load(merged)["model"]
    assert result.keys() == weights.keys()
    for name, value in result.items():
        assert torch.equal(value, weights[name] if "upsample" in name else base[name]), name


def test_mistakes_are_one_line_and_write_nothing(
    run, tiny_config, tiny_published, tmp_path, capsys
):
    common = ("--config-file", tiny_config, "--input")
    output = tmp_path / "out.pth"
    for args, message in (
        ((tiny_published, "--output", tiny_published), "is the input"),
        ((tmp_path / "none.pth", "--output", output, *OPTS), "none.pth' does not exist"),
        (
            (tiny_published, "--output", output),
            "error: the model of the config has 'backbone.fpn_lateral2.norm.weight', of which the "
            'published implementation has no counterpart: set MODEL.FPN.NORM ""',
        ),
        (
            (tiny_published, "--output", output, *OPTS, "MODEL.ROI_HEADS.NUM_CLASSES", "5"),
            "published.pth' does not fit the model of the config: 6 have another shape",
        ),
        (
            (tiny_published, "--output", output, "--to", "mmdetection", *OPTS),
            "published.pth' has no weights under 'model' but meta, state_dict, optimizer",
        ),
        ((tiny_published, "--output", output, "--into", tiny_published), "--upsamplers-only"),
    ):
        assert run(*common, *args) == 2
        printed = capsys.readouterr().err.strip().splitlines()[-1]
        assert "error: " in printed and message in printed
        assert not output.exists()


@pytest.mark.slow
def test_the_published_model_is_evaluated_on_real_images(run, few_coco_images, tmp_path):
    """Of full size, with random weights: the way through, not the result."""
    name = "faster_rcnn_R_50_FPN_1x_lda_aqu_published_weights.yaml"
    config = ROOT / "configs" / "COCO-Detection" / name
    published, ours = tmp_path / "published.pth", tmp_path / "ours.pth"
    torch.save(published_checkpoint(random_weights(published_shapes())), published)
    assert run("--config-file", config, "--input", published, "--output", ours) == 0
    result = evaluate(config, ours, tmp_path / "evaluated")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "keep their initial values" not in result.stdout
    assert "Evaluation results for bbox" in result.stdout
