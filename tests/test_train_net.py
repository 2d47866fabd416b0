"""train_net.py as a user runs it, at tiny size."""

import json
import subprocess
import sys

import forked
import pytest
import torch
from engine.runs import metrics
from lda_aqu.engine.output_folder import lock_output
from paths import ROOT


def run(config, *args: object) -> subprocess.CompletedProcess:
    return forked.run(ROOT / "train_net.py", "--config-file", config, *args)


def test_train_then_evaluate(tiny_config, tmp_path):
    augmentation = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(48,)")
    trained = run(tiny_config, "TEST.EVAL_PERIOD", 2, *augmentation)
    assert trained.returncode == 0, trained.stderr[-2000:]
    output = tmp_path / "output"
    present = {path.name for path in output.iterdir()}
    assert present >= {"model_final.pth", "config.yaml", "metrics.json", "last_checkpoint"}
    assert "model_best.pth" in present  # of evaluations on the way
    assert any(name.startswith("events.out.tfevents") for name in present)
    last = metrics(output)[-1]
    names = {"bbox/AP", "segm/AP", "bbox_TTA/AP", "segm_TTA/AP"}
    assert names <= set(last) and last["iteration"] == 4
    assert not {"bbox_TTA/AP"} & set(metrics(output)[0])

    evaluated = run(
        tiny_config, "--eval-only", "MODEL.WEIGHTS", output / "model_final.pth",
        "OUTPUT_DIR", tmp_path / "evaluated", *augmentation,
        "TEST.EXPECTED_RESULTS", "[['bbox_TTA', 'AP', 0, 100]]",
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr[-2000:]
    assert "copypaste: Task: segm" in evaluated.stdout
    for folder in ("inference", "inference_TTA"):
        results = tmp_path / "evaluated" / folder / "coco_instances_results.json"
        assert isinstance(json.loads(results.read_text()), list)


def test_evaluation_of_the_coco_config_on_real_images(few_coco_images, tmp_path):
    """With random weights: the way through, not the result."""
    config = ROOT / "configs" / "COCO-Detection" / "faster_rcnn_R_50_FPN_1x_lda_aqu.yaml"
    args = [
        *("--config-file", config, "--eval-only", "MODEL.WEIGHTS", ""),
        *("OUTPUT_DIR", tmp_path / "output", "INPUT.MIN_SIZE_TEST", 128),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
    ]
    # Not forked: built-in datasets are registered, from the environment, when they are imported.
    command = [sys.executable, "-W", "ignore", ROOT / "train_net.py", *args]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "Evaluation results for bbox" in result.stdout


@pytest.mark.parametrize(
    "args, message",
    [
        (["MODEL.FPN.UPSAMPLER", "Carafe"], "upsampler 'Carafe'; did you mean CARAFE?; known: A2U"),
        (["MODEL.FPN.OUT_CHANNELS", "30"], "MODEL.FPN.OUT_CHANNELS 30"),
        (
            ["DATASETS.TRAIN", "('tinny',)"],
            "no dataset 'tinny' is registered; nearest registered: t",
        ),
        (["MODEL.WEIGHTS", "none.pth"], "MODEL.WEIGHTS 'none.pth' does not exist"),
        (["--num-gpus", "8"], "SOLVER.IMS_PER_BATCH 2 must be a multiple of the number of proc"),
    ],
)
def test_mistakes_are_one_line(tiny_config, args, message):
    result = run(tiny_config, *args)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_an_evaluation_stays_out_of_the_folder_of_a_run(tiny_config, tmp_path):
    (tmp_path / "output").mkdir()
    with lock_output(str(tmp_path / "output")):
        result = run(tiny_config, "--eval-only")
    assert result.returncode == 2
    assert "is that of a run that is still going" in result.stderr.splitlines()[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpus_that_are_asked_for_are_not_replaced_by_the_cpu():
    config = ROOT / "configs" / "Small" / "faster_rcnn_R_18_FPN_bccd_lda_aqu.yaml"
    result = run(config, "--num-gpus", 2)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: MODEL.DEVICE 'cuda': this machine has no usable GPU; use MODEL.")
