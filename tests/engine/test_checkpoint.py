import errno
import math
import os
import re
import zipfile

import numpy as np
import pytest
import torch
from lda_aqu.engine import Checkpointer
from lda_aqu.engine.output_folder import begin_run
from lda_aqu.errors import InputError, mistake_in
from lda_aqu.upsamplers import build_upsampler
from torch import nn


class Model(nn.Module):
    """Parameters where a detector has them."""

    def __init__(self, channels: int = 8, upsampler: str = "LDAAQU") -> None:
        super().__init__()
        self.backbone = nn.ModuleDict(
            {
                "bottom_up": nn.Conv2d(3, channels, 1),
                "fpn_upsample2": build_upsampler(upsampler, channels),
            }
        )
        self.head = nn.Conv2d(channels, 2, 1)


@pytest.fixture
def saved(tmp_path):
    def save(model: nn.Module, drop: str = "no such key") -> str:
        state = {k: v for k, v in model.state_dict().items() if not k.startswith(drop)}
        torch.save({"model": state}, tmp_path / "model.pth")
        return str(tmp_path / "model.pth")

    return save


@pytest.mark.parametrize("complete", [True, False])
def test_round_trip(saved, complete):
    source, target = Model(), Model()
    Checkpointer(target, complete=complete).load(saved(source))
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)


@pytest.mark.parametrize("complete", [True, False])
def test_upsamplers_may_be_missing(saved, complete, caplog):
    Checkpointer(Model(), complete=complete).load(saved(Model(upsampler="Nearest")))
    assert "another upsampler" not in caplog.text


@pytest.mark.parametrize(
    "upsampler, options",
    [
        ("LDAAQU", {"reduction": 2}),
        ("CARAFE", {}),
        ("LAU", {}),  # of which all weights are there
    ],
)
def test_the_weights_of_another_upsampler(saved, upsampler, options, caplog):
    """They are refused where all is to be there, and passed over where a training starts."""
    caplog.set_level("INFO", "lda_aqu")
    path = saved(Model())
    target = Model(upsampler=upsampler)
    target.backbone["fpn_upsample2"] = build_upsampler(upsampler, 8, **options)
    Checkpointer(target).load(path)
    assert "another upsampler at backbone.fpn_upsample2 than the config: what they" in caplog.text
    message = "have another upsampler at backbone.fpn_upsample2 than the config"
    with pytest.raises(InputError, match=message):
        Checkpointer(target, complete=True).load(path)


def test_heads_may_be_missing_where_a_training_starts(saved):
    path = saved(Model(), drop="head")
    Checkpointer(Model()).load(path)
    with pytest.raises(
        InputError, match=r"2 of 4 parameters.*first is head\.bias \(it is not there"
    ):
        Checkpointer(Model(), complete=True).load(path)


@pytest.mark.parametrize("complete", [True, False])
def test_another_architecture(saved, complete):
    message = r"another architecture.*first is backbone.bottom_up.bias .*\(16,\).*\(8,\)"
    with pytest.raises(InputError, match=message):
        Checkpointer(Model(), complete=complete).load(saved(Model(channels=16)))


def test_another_architecture_of_a_backbone_without_a_pyramid(saved):
    def plain(channels: int) -> nn.Module:
        return nn.ModuleDict({"backbone": nn.Conv2d(3, channels, 1), "head": nn.Linear(2, 2)})

    with pytest.raises(InputError, match=r"another architecture.*first is backbone\.bias"):
        Checkpointer(plain(8)).load(saved(plain(16)))
    Checkpointer(plain(8)).load(saved(plain(8), drop="head"))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 truncated"])
@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_files_that_are_no_checkpoints(tmp_path, content, suffix):
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"weights '.*bad\.{suffix}' cannot be loaded"):
        Checkpointer(Model()).load(str(path))


def weight(value: float) -> nn.Module:
    """A model all of whose parameters have one value."""
    model = Model()
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def save_all(folder, *values: int) -> None:
    """Checkpoints of the iterations of these numbers, in this order, with these as weights."""
    for age, value in enumerate(values):
        Checkpointer(weight(value), str(folder)).save(f"model_{value:07d}", iteration=value)
        os.utime(folder / f"model_{value:07d}.pth", (1000 + age, 1000 + age))


def resumed(folder) -> float:
    model = Model()
    Checkpointer(model, str(folder)).resume_or_load("", resume=True)
    return model.head.bias[0].item()


def flip_a_bit(path) -> None:
    content = bytearray(path.read_bytes())
    weights = np.full(4, int(path.stem[-7:]), np.float32)
    content[content.index(weights.tobytes())] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        flip_a_bit,
        lambda path: path.unlink(),
    ],
)
def test_a_run_resumes_from_the_newest_whole_checkpoint(tmp_path, damage, caplog):
    caplog.set_level("WARNING", "lda_aqu")
    save_all(tmp_path, 9, 3)
    begin_run(str(tmp_path), resume=False)
    save_all(tmp_path, 2, 1, 3)  # in another order than their times
    Checkpointer(weight(7), str(tmp_path), resumable=False).save("model_best")
    caplog.clear()
    assert resumed(tmp_path) == 3 and not caplog.messages
    damage(tmp_path / "model_0000003.pth")
    assert resumed(tmp_path) == 2
    assert "model_0000009.pth' are of another run; trying the checkpoint before it" in caplog.text


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\x00" * 9, b""])
def test_a_damaged_name_of_the_last_checkpoint(tmp_path, content, caplog):
    save_all(tmp_path, 1, 2)
    (tmp_path / "last_checkpoint").write_bytes(content)
    assert resumed(tmp_path) == 2
    assert "last_checkpoint" in caplog.text


def test_checkpoints_that_were_copied_are_resumed(tmp_path):
    """The id of the run stayed behind."""
    begin_run(str(tmp_path), resume=False)
    save_all(tmp_path, 1)
    (tmp_path / "run_id").unlink()
    assert resumed(tmp_path) == 1


def test_weights_that_are_no_numbers_are_neither_saved_nor_resumed(tmp_path):
    save_all(tmp_path, 1)
    with pytest.raises(InputError, match="'model_0000002' is not saved, as .* is no number"):
        Checkpointer(weight(math.nan), str(tmp_path)).save("model_0000002")
    torch.save({"model": weight(math.inf).state_dict()}, tmp_path / "model_0000002.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    assert resumed(tmp_path) == 1


def test_no_whole_checkpoint(tmp_path):
    save_all(tmp_path, 1, 2)
    for path in tmp_path.glob("*.pth"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="none of the 2 checkpoints in .* can be read"):
        resumed(tmp_path)


def test_damaged_weights_that_were_asked_for_are_an_error(tmp_path):
    save_all(tmp_path, 1, 2)
    path = tmp_path / "model_0000002.pth"
    flip_a_bit(path)
    with pytest.raises(InputError, match="cannot be loaded: BadZipFile: its part .* is damaged"):
        Checkpointer(Model(), str(tmp_path)).resume_or_load(str(path), resume=False)


def test_a_checkpoint_of_another_model_is_not_resumed(tmp_path):
    Checkpointer(Model(channels=16), str(tmp_path)).save("model_0000001")
    with pytest.raises(InputError, match="another architecture"):
        resumed(tmp_path)
    Checkpointer(Model(upsampler="Nearest"), str(tmp_path)).save("model_0000002")
    with pytest.raises(InputError, match="another architecture"):
        resumed(tmp_path)


def test_weights_alone_are_not_resumed(tmp_path):
    save_all(tmp_path, 1)
    trainer = torch.optim.SGD(Model().parameters(), lr=1)
    with pytest.raises(InputError, match="no checkpoint to resume from: it has no 'trainer'"):
        Checkpointer(Model(), str(tmp_path), trainer=trainer).resume_or_load("")


@pytest.mark.parametrize("failing", ["model_0000002.pth", "last_checkpoint"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), SystemExit])
def test_a_failure_while_writing_leaves_the_checkpoint_before(
    tmp_path, failing, failure, monkeypatch
):
    save_all(tmp_path, 1)

    def fail(file) -> None:
        if failing in os.readlink(f"/proc/self/fd/{file}"):
            raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((InputError, SystemExit)) as raised:
        save_all(tmp_path, 2)
    if isinstance(failure, OSError):
        message = r"model_0000002\.pth' cannot be written: No space left on device"
        assert raised.type is InputError and re.search(message, str(raised.value))
    assert resumed(tmp_path) == 1
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_killed_writer_leaves_the_checkpoint_before(tmp_path):
    """In the state that a process leaves which is killed in the middle of a write."""
    save_all(tmp_path, 1)
    (tmp_path / "model_0000002.pth.7.unfinished").write_bytes(b"PK\x03\x04 half")
    assert resumed(tmp_path) == 1
    save_all(tmp_path, 2)
    assert resumed(tmp_path) == 2


def test_a_worker_that_is_killed_meanwhile_is_no_fault_of_the_disk(tmp_path, monkeypatch):
    """torch raises it wherever the process is just then."""
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    def save(data, file):
        raise killed

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RuntimeError) as raised:
        save_all(tmp_path, 1)
    assert raised.value is killed
    assert "set DATALOADER.NUM_WORKERS lower" in mistake_in(killed)


def test_a_compressed_file_is_no_checkpoint(tmp_path):
    """3 MB of it would be 3 GB."""
    save_all(tmp_path, 1)
    path = tmp_path / "packed.pth"
    source = zipfile.ZipFile(tmp_path / "model_0000001.pth")
    with source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    with pytest.raises(InputError, match="compressed, which torch never does"):
        Checkpointer(Model()).load(str(path))
