"""Two processes on the CPU give what one gives, started by train_net.py and by SLURM's script."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import forked
import lda_aqu.modeling  # noqa: F401  (registers the builders)
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng
from lda_aqu.data.glyphs import generate_glyphs
from lda_aqu.engine import Trainer, load_config
from paths import ROOT
from PIL import Image

SMALL = ROOT / "configs" / "Small"
TIMEOUT = 240

# Of what the equality of two processes and one is to hold: no statistics of the batch, no losses
# divided by counts that differ from image to image. The rate is low, as rounding turns ReLUs on
# and off, and no optimizer that divides by the gradients' size makes steps of what was rounded.
SEMANTIC = """
_BASE_: {small}/semantic_fpn_R_18_camvid_lda_aqu.yaml
MODEL:
  RESNETS: {{NORM: GN}}
  FPN: {{NORM: "", OUT_CHANNELS: 16}}
  SEM_SEG_HEAD: {{NORM: GN, CONVS_DIM: 32}}
DATASETS:
  TRAIN: [squares]
  TEST: []
  COCO_FORMAT:
    squares: {{IMAGES: {root}/images, SEMANTIC_LABELS: {root}/labels, CLASSES: {classes}}}
INPUT: {{MIN_SIZE_TRAIN: [64], CROP: {{ENABLED: False}}, RANDOM_FLIP: none}}
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER:
  MAX_ITER: 10
  CHECKPOINT_PERIOD: 5
  OPTIMIZER: SGD
  BASE_LR: 0.00002
  WEIGHT_DECAY: 0.0001
"""

PANOPTIC = """
_BASE_: {small}/panoptic_fpn_R_18_glyphs_lda_aqu.yaml
MODEL:
  DEVICE: cpu
  FPN: {{OUT_CHANNELS: 16}}
  ROI_HEADS: {{SCORE_THRESH_TEST: 0.0}}
  ROI_BOX_HEAD: {{CONV_DIM: 16, FC_DIM: 16}}
  ROI_MASK_HEAD: {{CONV_DIM: 16}}
  SEM_SEG_HEAD: {{CONVS_DIM: 16}}
  PANOPTIC_FPN: {{COMBINE: {{INSTANCES_CONFIDENCE_THRESH: 0.0}}}}
DATASETS:
  TEST: [scenes]
  COCO_FORMAT:
    scenes:
      IMAGES: {root}/val
      ANNOTATIONS: {root}/annotations/instances_val.json
      PANOPTIC_ANNOTATIONS: {root}/annotations/panoptic_val.json
      PANOPTIC_LABELS: {root}/panoptic_val
      SEMANTIC_LABELS: {root}/panoptic_stuff_val
INPUT: {{MIN_SIZE_TEST: 96}}
DATALOADER: {{NUM_WORKERS: 0}}
"""


@pytest.fixture
def squares(tmp_path) -> Path:
    """The config of a training on nine images of 64 x 64."""
    rng = np.random.default_rng(0)
    folders = [tmp_path / kind for kind in ("images", "labels")]
    for folder in folders:
        folder.mkdir()
    for index in range(9):
        labels = np.kron(rng.integers(0, 11, (4, 4)), np.ones((16, 16))).astype(np.uint8)
        image = labels[..., None] * 20 + rng.integers(0, 30, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(image).save(folders[0] / f"{index}.jpg")
        Image.fromarray(labels).save(folders[1] / f"{index}.png")
    config = tmp_path / "squares.yaml"
    config.write_text(SEMANTIC.format(small=SMALL, root=tmp_path, classes=[*"abcdefghijk"]))
    return config


def weights(path: Path) -> torch.Tensor:
    """All of a checkpoint in one vector."""
    return torch.cat([value.flatten() for value in torch.load(path)["model"].values()])


def free_job_id() -> int:
    """A SLURM job id for which the script's port is free."""
    for job_id in range(os.getpid() % 9000, 20000):
        with socket.socket() as probe:
            try:
                probe.bind(("", 20000 + job_id))
            except OSError:
                continue
            return job_id
    raise RuntimeError("no free port")


def slurm_train(folder: Path, processes: int, *args: str) -> subprocess.CompletedProcess:
    """Run tools/slurm_train.sh as SLURM would on one node, with stand-ins for its commands."""
    for name, body in (("srun", 'exec "$@"'), ("scontrol", "echo localhost")):
        stub = folder / "bin" / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(f"#!/bin/sh\n{body}\n")
        stub.chmod(0o755)
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent)])
    environment = {
        "PATH": f"{path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONWARNINGS": "ignore",
        "SLURM_JOB_ID": str(free_job_id()),
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NNODES": "1",
        "SLURM_GPUS_ON_NODE": str(processes),
    }
    return subprocess.run(
        [str(ROOT / "tools" / "slurm_train.sh"), *args],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=TIMEOUT,
    )  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(
                torch.cuda.device_count() < 2, reason="NCCL needs a GPU for each of two processes"
            ),
        ),
    ],
)
def test_two_processes_of_half_the_batch_are_one_of_the_whole(squares, tmp_path, monkeypatch, kind):
    """Under torchrun, by the script for SLURM, with the gradients accumulated in two parts, too."""
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    opts = ["--config-file", str(squares), "MODEL.DEVICE", kind]
    one, two = tmp_path / "one", tmp_path / "two"
    for result in (
        forked.run(ROOT / "train_net.py", *opts, "OUTPUT_DIR", one),
        slurm_train(tmp_path, 2, *opts, "OUTPUT_DIR", str(two), "SOLVER.ACCUMULATION_STEPS", "2"),
    ):
        assert result.returncode == 0, result.stderr[-2000:]
    assert "World size: 2" in (two / "log.txt").read_text()
    halfway, expected = (weights(one / f"model_{name}.pth") for name in ("0000004", "final"))
    deviation = weights(two / "model_final.pth") - expected
    assert deviation.norm() < 0.01 * (expected - halfway).norm()
    assert deviation.abs().max() < 1e-5


@pytest.fixture
def scenes(tmp_path) -> Iterator[Path]:
    """The config of an evaluation on five images of 96 x 96."""
    generate_glyphs(tmp_path / "glyphs", num_train=1, num_val=5, size=96, seed=0)
    config = tmp_path / "scenes.yaml"
    config.write_text(PANOPTIC.format(small=SMALL, root=tmp_path / "glyphs"))
    yield config
    for catalog in (DatasetCatalog, MetadataCatalog):  # loading the config registers it
        catalog.pop("scenes", None)


def saved(folder: Path) -> dict[str, object]:
    """What an evaluation has saved: by file its entries, in any order, or its pixels."""
    found = {}
    for path in folder.rglob("*"):
        if path.suffix == ".png":
            found[path.name] = np.array(Image.open(path)).tobytes()
        elif path.suffix == ".json":
            content = json.loads(path.read_text())
            entries = content["annotations"] if isinstance(content, dict) else content
            found[path.name] = sorted(map(json.dumps, entries))
    return found


def test_evaluation_in_two_processes_is_that_in_one(scenes, tmp_path):
    """Of five images, which are shared out unevenly: all that is saved.

    The weights lack the pyramid's upsamplers, which start at random.
    """
    seed_all_rng(0)
    initial = tmp_path / "weights.pth"
    values = Trainer.build_model(load_config(str(scenes), [])).state_dict()
    kept = {name: value for name, value in values.items() if "fpn_upsample" not in name}
    torch.save({"model": kept}, initial)
    one, two = ({}, {})
    for processes, found in ((1, one), (2, two)):
        output = tmp_path / str(processes)
        # Not forked, which the threads of hotcoco, used by earlier tests, do not survive.
        result = subprocess.run(
            [
                *(sys.executable, "-W", "ignore", ROOT / "train_net.py", "--config-file", scenes),
                *("--eval-only", "--num-gpus", str(processes)),
                *("MODEL.WEIGHTS", initial, "OUTPUT_DIR", output),
            ],
            capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-2000:]
        found |= saved(output / "inference")
    files = ("coco_instances_results", "sem_seg_predictions", "panoptic_predictions")
    assert one.keys() >= {f"{name}.json" for name in files} and len(one) == 3 + 5
    assert all(one.values())
    assert one == two
