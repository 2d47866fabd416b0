"""Two processes on the CPU give what one gives, started by train_net.py and by SLURM's script."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import lda_aqu.modeling  # noqa: F401  (registers the builders)
import numpy as np
import pytest
import torch
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
SEMANTIC = [
    "MODEL.RESNETS.NORM", "GN", "MODEL.FPN.NORM", "GN", "MODEL.SEM_SEG_HEAD.NORM", "GN",
    "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.CROP.ENABLED", "False", "INPUT.RANDOM_FLIP", "none",
    "DATALOADER.NUM_WORKERS", "0", "DATASETS.TEST", "()",
    "SOLVER.MAX_ITER", "20", "SOLVER.CHECKPOINT_PERIOD", "10", "SOLVER.OPTIMIZER", "SGD",
    "SOLVER.BASE_LR", "0.00002", "SOLVER.WEIGHT_DECAY", "0.0001",
]  # fmt: skip


@pytest.fixture
def camvid(tmp_path, monkeypatch) -> None:
    """Nine training images of 64 x 64, in the layout of the dataset "camvid"."""
    rng = np.random.default_rng(0)
    folders = [tmp_path / "camvid" / kind / "train" for kind in ("images", "labels")]
    for folder in folders:
        folder.mkdir(parents=True)
    for index in range(9):
        labels = np.kron(rng.integers(0, 11, (4, 4)), np.ones((16, 16))).astype(np.uint8)
        image = labels[..., None] * 20 + rng.integers(0, 30, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(image).save(folders[0] / f"{index}.jpg")
        Image.fromarray(labels).save(folders[1] / f"{index}.png")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))


def train_net(*args: str) -> subprocess.CompletedProcess:
    """Run train_net.py, which is to succeed."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "train_net.py"), *args],
        capture_output=True, text=True, timeout=TIMEOUT,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    return result


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
def test_two_processes_of_half_the_batch_are_one_of_the_whole(camvid, tmp_path, monkeypatch, kind):
    """Under torchrun, by the script for SLURM, with the gradients accumulated in two parts, too."""
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    config = str(SMALL / "semantic_fpn_R_18_camvid_lda_aqu.yaml")
    opts = ["--config-file", config, *SEMANTIC, "MODEL.DEVICE", kind]
    one, two = tmp_path / "one", tmp_path / "two"
    train_net(*opts, "OUTPUT_DIR", str(one))
    result = slurm_train(
        tmp_path, 2, *opts, "OUTPUT_DIR", str(two), "SOLVER.ACCUMULATION_STEPS", "2"
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "World size: 2" in (two / "log.txt").read_text()
    halfway, expected = (weights(one / f"model_{name}.pth") for name in ("0000009", "final"))
    deviation = weights(two / "model_final.pth") - expected
    assert deviation.norm() < 0.01 * (expected - halfway).norm()
    assert deviation.abs().max() < 1e-5


def csv_metrics(log: str) -> dict[str, list[str]]:
    """What an evaluation prints for copying, by task."""
    lines = re.findall(r"copypaste: (.*)", log)
    return {lines[i]: lines[i + 2].split(",") for i in range(0, len(lines), 3)}


def test_evaluation_in_two_processes_is_that_in_one(tmp_path, monkeypatch):
    """Of five images, which are shared out unevenly: all metrics, and the predictions saved.

    The weights lack the pyramid's upsamplers, which start at random.
    """
    generate_glyphs(tmp_path / "glyphs", num_train=1, num_val=5, size=96, seed=0)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    config = str(SMALL / "panoptic_fpn_R_18_glyphs_lda_aqu.yaml")
    opts = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "96", "DATALOADER.NUM_WORKERS", "0"]
    cfg = load_config(config, opts)
    seed_all_rng(0)
    initial = str(tmp_path / "weights.pth")
    values = Trainer.build_model(cfg).state_dict()
    kept = {name: value for name, value in values.items() if "fpn_upsample" not in name}
    torch.save({"model": kept}, initial)
    found = {}
    for processes in (1, 2):
        output = tmp_path / str(processes)
        result = train_net(
            "--config-file", config, "--eval-only", "--num-gpus", str(processes), *opts,
            "MODEL.WEIGHTS", initial, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
            "OUTPUT_DIR", str(output),
        )  # fmt: skip
        instances = json.loads((output / "inference/coco_instances_results.json").read_text())
        found[processes] = csv_metrics(result.stdout), sorted(map(json.dumps, instances))
    assert found[1][0].keys() == {f"Task: {t}" for t in ("bbox", "segm", "sem_seg", "panoptic_seg")}
    assert len(found[1][1]) > 0
    assert found[1] == found[2]
