"""Whose output folder it is."""

import multiprocessing
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from lda_aqu.engine.output_folder import (
    OutputFolderStays,
    begin_run,
    lock_output,
    read_run_id,
)
from lda_aqu.errors import InputError
from lda_aqu.files import atomic_write

FORK = multiprocessing.get_context("fork")


def left_by_an_earlier_run(folder: Path) -> None:
    (folder / "metrics.json").write_text("{}")
    (folder / "last_checkpoint").write_text("model_final.pth")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_new_run_has_nothing_of_an_earlier_one(tmp_path):
    """Nor has one that goes on after the new one died before its first checkpoint."""
    left_by_an_earlier_run(tmp_path)
    assert not begin_run(str(tmp_path), resume=False)
    first = read_run_id(str(tmp_path))
    assert not {"metrics.json", "last_checkpoint"} & names(tmp_path)
    assert not begin_run(str(tmp_path), resume=True)
    assert read_run_id(str(tmp_path)) not in (None, first)


def test_what_is_set_aside_twice_in_a_second_is_there_twice(tmp_path):
    for text in "abc":
        (tmp_path / "metrics.json").write_text(text)
        os.utime(tmp_path / "metrics.json", (1000, 1000))
        begin_run(str(tmp_path), resume=False)
    assert {path.read_text() for path in tmp_path.glob("metrics-*.json")} == set("abc")


def test_a_run_that_goes_on_keeps_all(tmp_path):
    begin_run(str(tmp_path), resume=False)
    left_by_an_earlier_run(tmp_path)
    before = names(tmp_path), read_run_id(str(tmp_path))
    assert begin_run(str(tmp_path), resume=True)
    assert (names(tmp_path), read_run_id(str(tmp_path))) == before


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_metrics_that_are_no_file_are_set_aside(tmp_path, make, caplog):
    left_by_an_earlier_run(tmp_path)
    (tmp_path / "metrics.json").unlink()
    make(tmp_path / "metrics.json")
    assert begin_run(str(tmp_path), resume=True)
    assert "metrics.json" not in names(tmp_path) and "is kept as metrics-" in caplog.text


def test_one_run_at_a_time(tmp_path):
    """Another process has it; one that is killed gives it back."""
    locked = FORK.Event()

    def hold() -> None:
        with lock_output(str(tmp_path)):
            locked.set()
            time.sleep(60)

    other = FORK.Process(target=hold)
    other.start()
    assert locked.wait(20)
    with pytest.raises(InputError, match="that is still going"), lock_output(str(tmp_path)):
        pass
    other.kill()
    other.join()
    (tmp_path / "model_final.pth.7.unfinished").write_text("half")
    with lock_output(str(tmp_path)):
        assert names(tmp_path) == {".lock"}


def test_a_writer_follows_no_link(tmp_path):
    other = tmp_path / "other"
    other.write_text("")
    (tmp_path / f"file.{os.getpid()}.unfinished").symlink_to(other)
    with atomic_write(tmp_path / "file") as file:
        file.write(b"content")
    assert other.read_text() == "" and (tmp_path / "file").read_text() == "content"


@pytest.mark.parametrize("replaced", [True, False])
def test_a_folder_that_is_removed_ends_the_run_and_the_model_is_saved(tmp_path, replaced):
    folder = tmp_path / "output"
    folder.mkdir()
    saved = []
    checkpointer = SimpleNamespace(
        save_dir=str(folder), save=lambda name, iteration: saved.append(name)
    )
    hook = OutputFolderStays(checkpointer)
    hook.trainer = SimpleNamespace(iter=19)
    hook.after_step()
    hook.after_train()
    assert not saved
    shutil.move(folder, tmp_path / "elsewhere")
    if replaced:  # as an evaluation does
        folder.mkdir()
    with pytest.raises(InputError, match="OUTPUT_DIR .* was removed during the run"):
        hook.after_step()
    assert saved == ["model_0000019"]
