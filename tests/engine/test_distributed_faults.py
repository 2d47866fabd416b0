"""Faults in one of two processes: both end, and what can go on does, as if it had been one."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import runs
from paths import ROOT

TIMEOUT = 240


def train(config: Path, *args: str) -> subprocess.Popen:
    """Start a training in two processes, with a seed. What it prints goes to :func:`runs.log`."""
    command = [sys.executable, "-W", "ignore", str(ROOT / "train_net.py"), "--num-gpus", "2"]
    with config.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            [*command, "--config-file", str(config), *args, "SEED", "3", "DATASETS.TEST", "()"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def finish(process: subprocess.Popen) -> int:
    """Wait for the end of a training: its exit status."""
    try:
        return process.wait(TIMEOUT)
    finally:
        process.kill()


def assert_one_line(config: Path, *words: str) -> None:
    """Assert that a training has printed one error, which has these words."""
    printed = runs.log(config)
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and all(word in errors[0] for word in words), printed
    assert "Traceback" not in printed


def test_sigterm_ends_both_processes_and_they_go_on(tiny_config, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    opts = "SOLVER.MAX_ITER", "40", "SOLVER.CHECKPOINT_PERIOD", "100", "OUTPUT_DIR"
    assert finish(train(tiny_config, *opts, str(whole))) == 0
    process = train(tiny_config, *opts, str(resumed))
    deadline = time.monotonic() + TIMEOUT
    metrics = resumed / "metrics.json"
    while not (metrics.exists() and metrics.stat().st_size):  # written every 20 iterations
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    assert finish(process) == 143
    printed = runs.log(tiny_config)
    assert "SIGTERM: saved after iteration" in printed and "Traceback" not in printed
    assert len(list(resumed.glob("*.pth"))) == 1
    assert finish(train(tiny_config, "--resume", *opts, str(resumed))) == 0
    runs.assert_same(resumed, whole)


def test_an_image_that_one_process_cannot_read_ends_both(tiny_config, tiny_coco, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(tiny_coco / "images", images)
    damaged = sorted(images.iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:3000])
    config = tiny_config.read_text().replace(f'"{tiny_coco}/images"', f'"{images}"')
    tiny_config.write_text(config)
    assert finish(train(tiny_config, "SOLVER.MAX_ITER", "50")) == 2
    assert_one_line(tiny_config, str(damaged))


def test_losses_that_are_no_numbers_end_both_processes(tiny_config, tmp_path):
    process = train(
        tiny_config, "SOLVER.MAX_ITER", "50", "SOLVER.BASE_LR", "1e8", "SOLVER.WARMUP_ITERS", "0",
        "SOLVER.CLIP_GRADIENTS.ENABLED", "False",
    )  # fmt: skip
    assert finish(process) == 2
    assert_one_line(tiny_config, "iteration ", "SOLVER.BASE_LR")
    assert list((tmp_path / "output").glob("non_finite_loss_[01].json"))
