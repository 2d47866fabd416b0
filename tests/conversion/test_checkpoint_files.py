import errno
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from lda_aqu.conversion.checkpoint_files import check_output, read_checkpoint, write_checkpoint
from lda_aqu.errors import InputError

WEIGHTS = {"layer.weight": torch.ones(2)}


class Foreign:
    """An object of a class that is not torch's, as some training scripts leave in "meta"."""


@pytest.mark.parametrize("zipped", [True, False])
def test_foreign_objects_are_read_only_if_trusted(tmp_path, zipped):
    path = tmp_path / "foreign.pth"
    content = {"state_dict": WEIGHTS, "meta": Foreign()}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"\(the first is of .*Foreign\).*give --trust-weights"):
        read_checkpoint(path, "state_dict")
    content = read_checkpoint(path, "state_dict", trusted=True)
    assert torch.equal(content["state_dict"]["layer.weight"], torch.ones(2))


def test_nothing_runs_unless_trusted(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "malicious.pth"
    torch.save({"state_dict": WEIGHTS, "meta": Malicious()}, path)
    with pytest.raises(InputError, match="--trust-weights"):
        read_checkpoint(path, "state_dict")
    assert not (tmp_path / "ran").exists()


def test_a_module_that_is_not_installed_is_named(tmp_path, monkeypatch):
    module = types.ModuleType("mmcv_of_long_ago")
    module.Config = type("Config", (), {"__module__": module.__name__})
    path = tmp_path / "config.pth"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        torch.save({"state_dict": WEIGHTS, "meta": module.Config()}, path)
    with pytest.raises(InputError, match="No module named 'mmcv_of_long_ago'"):
        read_checkpoint(path, "state_dict", trusted=True)


def test_a_pickle_of_the_model_zoo(tmp_path):
    path = tmp_path / "zoo.pkl"
    arrays = {name: value.numpy() for name, value in WEIGHTS.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}))
    for trusted in (False, True):
        content = read_checkpoint(path, "model", trusted)
        assert torch.equal(content["model"]["layer.weight"], torch.ones(2))
    path.write_bytes(pickle.dumps({"model": arrays, "meta": Foreign()}))
    with pytest.raises(InputError, match=r"\(the first is of .*Foreign\).*give --trust-weights"):
        read_checkpoint(path, "model")
    read_checkpoint(path, "model", trusted=True)


def test_a_state_dict_alone_is_the_weights(tmp_path):
    torch.save(WEIGHTS, tmp_path / "plain.pth")
    content = read_checkpoint(tmp_path / "plain.pth", "model")
    assert content.keys() == {"model"} and content["model"].keys() == WEIGHTS.keys()


@pytest.mark.parametrize(
    "content, message",
    [
        (
            {f"layer{n}": torch.ones(1) for n in range(300)} | {"epoch": 3},
            "no weights under 'state_dict' but layer0, .*layer7, ...$",
        ),
        (
            {"state_dict": {"layer.weight": np.array([None])}},
            "layer.weight: .*numpy.object_",
        ),
        ({"model": WEIGHTS, "iteration": 1}, "no weights under 'state_dict' but model, iteration"),
        ({"state_dict": 3}, "no weights under 'state_dict'"),
        ([1], "no weights under 'state_dict'$"),
        ({"state_dict": {"layer.weight": [1.0]}}, "layer.weight is not a tensor but a list"),
    ],
)
def test_other_content(tmp_path, content, message):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path / "file.pth", "state_dict", trusted=True)


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(
    "damage", ["empty", "text", "truncated", "bit", "pickle", "folder", "absent"]
)
def test_what_is_no_checkpoint(tmp_path, damage, trusted):
    path = tmp_path / "file.pth"
    torch.save({"state_dict": WEIGHTS}, path)
    if damage in ("folder", "absent"):
        path.unlink()
        if damage == "folder":
            path.mkdir()
    else:
        path.write_bytes(
            {
                "empty": b"",
                "text": b"hello, world",
                "truncated": path.read_bytes()[:-200],
                "bit": path.read_bytes().replace(
                    WEIGHTS["layer.weight"].numpy().tobytes(), b"\1" * 8
                ),
                "pickle": pickle.dumps({"model": 1}),
            }[damage]
        )
    with pytest.raises(InputError, match="checkpoint '.*file.pth'") as caught:
        read_checkpoint(path, "state_dict", trusted)
    assert "\n" not in str(caught.value)


def test_outputs_that_are_refused(tmp_path):
    source = tmp_path / "source.pth"
    source.touch()
    (tmp_path / "link.pth").symlink_to(source)
    for output, message in (
        (tmp_path / "ours.pkl", "must end in .pth"),
        (tmp_path / "none" / "ours.pth", "the folder does not exist"),
        (source, "is the input"),
        (tmp_path / "link.pth", "is the input"),
    ):
        with pytest.raises(InputError, match=message):
            check_output(output, [source])
    check_output(tmp_path / "ours.pth", [source])


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "ours.pth"
    write_checkpoint(path, {"model": WEIGHTS})

    def save(content, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(InputError, match="ours.pth' cannot be written: .*No space left"):
        write_checkpoint(path, {"model": {}})
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(torch.load(path)["model"]["layer.weight"], torch.ones(2))
