"""Runs that meet a fault: each ends with one clear line."""

import errno
import io
import json
import math
import os
import resource
from pathlib import Path

import pytest
import runs
import torch
from lda_aqu.engine import Trainer, load_config
from lda_aqu.engine.divergence import check_finite
from lda_aqu.errors import InputError, exit_on_input_error, mistake_in
from lda_aqu.files import make_folder

SHORT = ("SOLVER.MAX_ITER", 3, "DATASETS.TEST", "()", "SEED", 1)


def test_a_loss_that_is_no_number_ends_the_run(tiny_config, tmp_path):
    opts = (*SHORT, "SOLVER.MAX_ITER", 50, "SOLVER.BASE_LR", 1e8, "SOLVER.WARMUP_ITERS", 0)
    assert runs.finish(tiny_config, *opts, "SOLVER.CLIP_GRADIENTS.ENABLED", False) == 2
    path = tmp_path / "output" / "non_finite_loss_0.json"
    runs.assert_one_line(tiny_config, "iteration ", "loss_", str(path), "SOLVER.BASE_LR")
    report = json.loads(path.read_text())
    assert report["iteration"] > 0 and report["error"]
    assert len(report["file_names"]) == 2 and all(map(Path.exists, map(Path, report["file_names"])))


def test_an_error_of_detectron2s_names_the_images_too(tiny_config, tmp_path, monkeypatch):
    """Its region proposals look at their values before there is a loss.

    Nothing is evaluated, though the iteration is the last.
    """
    trainer = Trainer(load_config(str(tiny_config), ["SOLVER.MAX_ITER", 1]))
    monkeypatch.setattr(Trainer, "test", lambda *_: pytest.fail("evaluates"))
    parameters = [p for n, p in trainer.model.named_parameters() if "rpn_head.conv" in n]
    for parameter in parameters:
        torch.nn.init.constant_(parameter, math.nan)
    with pytest.raises(InputError, match="iteration 0: FloatingPointError: Predicted boxes or sc"):
        trainer.train()
    report = json.loads((tmp_path / "output" / "non_finite_loss_0.json").read_text())
    assert report["iteration"] == 0 and len(report["file_names"]) == 2


def test_losses_that_are_numbers_pass():
    check_finite({"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
    with pytest.raises(FloatingPointError, match=r"b is inf \(a 1, b inf\)"):
        check_finite({"a": torch.tensor(1.0), "b": torch.tensor(math.inf)})


def test_a_sampler_that_cannot_be_built_is_one_line(tiny_config):
    opts = (*SHORT, "DATALOADER.SAMPLER_TRAIN", "WeightedTrainingSampler")
    assert runs.finish(tiny_config, *opts) == 2
    runs.assert_one_line(tiny_config, "the training cannot be built")


def test_annotations_that_are_gone_or_changed_when_they_are_needed(
    tiny_config, tiny_coco, tmp_path
):
    annotations = tmp_path / "annotations.json"
    annotations.touch()
    path = f"{tiny_coco}/annotations.json"
    tiny_config.write_text(tiny_config.read_text().replace(path, str(annotations)))
    cfg = load_config(str(tiny_config), [])
    annotations.unlink()
    for content in ("", "{"):
        if content:
            annotations.write_text(content)
        with pytest.raises(InputError, match="dataset tiny: .* cannot be read: "):
            Trainer.build_evaluator(cfg, "tiny")
        with pytest.raises(InputError, match="dataset tiny: .* cannot be read: "):
            Trainer.build_test_loader(cfg, "tiny")


def test_an_unreadable_image_ends_the_run(tiny_config, tiny_coco, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for path in (tiny_coco / "images").iterdir():
        (images / path.name).write_bytes(path.read_bytes()[:3000])
    config = tiny_config.read_text().replace(f'"{tiny_coco}/images"', f'"{images}"')
    tiny_config.write_text(config)
    assert runs.finish(tiny_config, *SHORT, "DATALOADER.NUM_WORKERS", 1) == 2
    runs.assert_one_line(tiny_config, "tiny: image file", ".png' or its labels cannot be read")


def test_a_checkpoint_that_cannot_be_written_ends_the_run(tiny_config):
    """A limit of the size of files stands for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        status = runs.finish(tiny_config, *SHORT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2
    runs.assert_one_line(tiny_config, "model_0000001.pth' cannot be written: ", "File too large")


def test_a_fault_of_a_file_is_one_line_of_any_command(capsys):
    @exit_on_input_error
    def write(number: int, *name: str) -> None:
        raise OSError(number, os.strerror(number), *name)

    with pytest.raises(SystemExit, match="2"):
        write(errno.ENOSPC)
    with pytest.raises(SystemExit, match="2"):
        write(errno.ENOENT, "a.json")
    expected = "error: No space left on device\nerror: No such file or directory ('a.json')\n"
    assert capsys.readouterr().err == expected
    with pytest.raises(OSError, match="Bad file descriptor"):
        write(errno.EBADF)


class FullDisk(io.BytesIO):
    """A file for which there is room for small writes alone."""

    def write(self, data: bytes) -> int:
        if len(data) > 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_full_disk_under_torchs_writer_is_one_line():
    """As Detectron2's evaluator saves predictions."""
    with pytest.raises(RuntimeError, match="unexpected pos") as raised:
        torch.save({"a": torch.zeros(1000)}, FullDisk())
    assert mistake_in(raised.value) == "No space left on device"


def test_output_that_cannot_be_written(tmp_path):
    make_folder(tmp_path / "a" / "b", "OUTPUT_DIR")
    assert (tmp_path / "a" / "b").is_dir() and not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/output"):
        with pytest.raises(InputError, match=r"OUTPUT_DIR '.*file.*' cannot be written: "):
            make_folder(tmp_path / folder, "OUTPUT_DIR")
