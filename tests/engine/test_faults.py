"""Runs that meet a fault: each ends with one clear line."""

import errno
import json
import os
import resource
from pathlib import Path

import pytest
import runs
import torch
from lda_aqu.engine.finite_loss import FiniteLoss
from lda_aqu.errors import InputError, exit_on_input_error
from lda_aqu.files import make_folder
from torch import nn

SHORT = ("SOLVER.MAX_ITER", 3, "DATASETS.TEST", "()", "SEED", 1)


def assert_one_line(config: Path, *words: str) -> None:
    text = runs.log(config)
    assert "Traceback" not in text
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and all(word in errors[0] for word in words), text[-2000:]


def test_a_loss_that_is_no_number_ends_the_run(tiny_config, tmp_path):
    opts = (*SHORT, "SOLVER.MAX_ITER", 50, "SOLVER.BASE_LR", 1e8, "SOLVER.WARMUP_ITERS", 0)
    assert runs.finish(tiny_config, *opts, "SOLVER.CLIP_GRADIENTS.ENABLED", False) == 2
    path = tmp_path / "output" / "non_finite_loss_0.json"
    assert_one_line(tiny_config, "iteration ", "loss_", str(path), "SOLVER.BASE_LR")
    report = json.loads(path.read_text())
    assert report["iteration"] > 0 and {"nan", "inf"} & set(report["losses"].values())
    assert len(report["file_names"]) == 2 and all(map(Path.exists, map(Path, report["file_names"])))


class Losses(nn.Module):
    def forward(self, value: float) -> dict[str, torch.Tensor]:
        return {"loss_a": torch.tensor(1.0), "loss_b": torch.tensor(value)}


def test_losses_of_an_evaluation_and_finite_ones_pass(tmp_path):
    model = Losses()
    hook = FiniteLoss(model, str(tmp_path))
    hook.before_train()
    model(2.0)
    model.eval()
    model(float("nan"))
    hook.after_train()
    model.train()
    model(float("nan"))
    assert not list(tmp_path.iterdir())


def test_an_unreadable_image_ends_the_run(tiny_config, tiny_coco, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for path in (tiny_coco / "images").iterdir():
        (images / path.name).write_bytes(path.read_bytes()[:3000])
    config = tiny_config.read_text().replace(f'"{tiny_coco}/images"', f'"{images}"')
    tiny_config.write_text(config)
    assert runs.finish(tiny_config, *SHORT, "DATALOADER.NUM_WORKERS", 1) == 2
    assert_one_line(tiny_config, "dataset tiny: image file", ".png' or its labels cannot be read")


def test_a_checkpoint_that_cannot_be_written_ends_the_run(tiny_config):
    """A limit of the size of files stands for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        status = runs.finish(tiny_config, *SHORT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2
    assert_one_line(tiny_config, "model_0000001.pth' cannot be written: ", "File too large")


def test_a_full_disk_is_one_line_of_any_command(capsys):
    @exit_on_input_error
    def write(number: int) -> None:
        raise OSError(number, os.strerror(number), "log.txt")

    with pytest.raises(SystemExit, match="2"):
        write(errno.ENOSPC)
    assert capsys.readouterr().err == "error: No space left on device ('log.txt')\n"
    with pytest.raises(OSError, match="Bad file descriptor"):
        write(errno.EBADF)


def test_output_that_cannot_be_written(tmp_path):
    make_folder(tmp_path / "a" / "b", "OUTPUT_DIR")
    assert (tmp_path / "a" / "b").is_dir() and not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/output"):
        with pytest.raises(InputError, match=r"OUTPUT_DIR '.*file.*' cannot be written: "):
            make_folder(tmp_path / folder, "OUTPUT_DIR")
