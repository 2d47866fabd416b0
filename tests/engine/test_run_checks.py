import pytest
import torch
from detectron2.engine import default_argument_parser
from lda_aqu.engine import (
    check_processes,
    check_solver,
    check_weights,
    load_config,
)
from lda_aqu.engine.launch import TORCHRUN_VARIABLES
from lda_aqu.errors import InputError


def check_processes_of(command: str, *opts: str) -> None:
    parser = default_argument_parser()
    parser.set_defaults(dist_url="auto")
    check_processes(load_config("", list(opts)), parser.parse_args(command.split()))


@pytest.mark.parametrize(
    "command, opts, message",
    [
        ("--num-gpus 0", (), "--num-gpus 0: must be at least 1"),
        ("--num-machines 0", (), "--num-machines 0: must be at least 1"),
        ("--num-machines 2 --machine-rank 2", (), "--machine-rank 2: with .* it is 0 to 1"),
        ("--num-machines 2", (), "--num-machines 2 needs --dist-url tcp://HOST:PORT"),
        ("--num-gpus 2 --dist-url tcp://localhost", (), "--dist-url tcp://localhost: .*a port"),
        ("--num-gpus 2 --dist-url tcp://localhost:999999", (), "--dist-url tcp://.*: ValueError"),
        ("--num-machines 2 --dist-url tcp://no.invalid:1", (), "tcp://no.invalid:1: gaierror"),
        ("--num-gpus 2 --dist-url tcp://192.0.2.1:9", (), "--dist-url tcp://192.0.2.1:9: OSError"),
        ("--num-gpus 3", ("MODEL.DEVICE", "cuda"), "--num-gpus 3: this machine has 2 usable GPUs"),
        ("--num-gpus 2", ("MODEL.DEVICE", "cuda:1"), "'cuda:1' is one GPU: with 2 processes"),
        (
            "--num-gpus 2",
            ("MODEL.DEVICE", "cpu", "MODEL.SEM_SEG_HEAD.NORM", "SyncBN"),
            "MODEL.SEM_SEG_HEAD.NORM SyncBN needs GPUs.*naiveSyncBN",
        ),
    ],
)
def test_processes_that_cannot_run(monkeypatch, command, opts, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _index: "a GPU")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    with pytest.raises(InputError, match=message):
        check_processes_of(command, *opts)


def test_processes_that_can_run(monkeypatch):
    check_processes_of("", "MODEL.DEVICE", "cpu", "MODEL.SEM_SEG_HEAD.NORM", "SyncBN")
    check_processes_of("--num-gpus 8", "MODEL.DEVICE", "cpu")
    check_processes_of("--num-machines 2 --dist-url tcp://localhost:1", "MODEL.DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _index: "a GPU")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    check_processes_of("--num-gpus 8", "MODEL.SEM_SEG_HEAD.NORM", "SyncBN")


def test_torchrun_leaves_nothing_for_our_options(monkeypatch):
    for variable, value in zip(TORCHRUN_VARIABLES, ("0", "2", "0", "2"), strict=True):
        monkeypatch.setenv(variable, value)
    check_processes_of("", "MODEL.DEVICE", "cpu")
    with pytest.raises(InputError, match="torchrun starts the processes: leave --num-gpus"):
        check_processes_of("--num-gpus 2", "MODEL.DEVICE", "cpu")


@pytest.mark.parametrize(
    "opts, message",
    [
        (["SOLVER.ACCUMULATION_STEPS", "16"], "IMS_PER_BATCH 16 must be .* 2, times .* 16"),
        (["SOLVER.REFERENCE_WORLD_SIZE", "3"], "16 is not a multiple of .*REFERENCE_WORLD_SIZE 3"),
        (
            ["SOLVER.REFERENCE_WORLD_SIZE", "8", "SOLVER.ACCUMULATION_STEPS", "4"],
            "IMS_PER_BATCH 4 must be",
        ),
    ],
)
def test_batches_that_cannot_be_shared_out(opts, message):
    with pytest.raises(InputError, match=message):
        check_solver(load_config("", opts), num_processes=2)


def test_batches_that_can_be_shared_out():
    check_solver(load_config("", ["SOLVER.ACCUMULATION_STEPS", "8"]), num_processes=2)
    opts = ["SOLVER.REFERENCE_WORLD_SIZE", "8", "SOLVER.ACCUMULATION_STEPS", "2"]
    check_solver(load_config("", opts), num_processes=3)


def test_weights(tmp_path, caplog):
    check_weights(load_config("", ["MODEL.WEIGHTS", ""]))
    assert "random weights" in caplog.text
    check_weights(load_config("", ["MODEL.WEIGHTS", "detectron2://ImageNetPretrained/R-50.pkl"]))
    with pytest.raises(InputError, match=r"MODEL\.WEIGHTS '.*none\.pth' does not exist"):
        check_weights(load_config("", ["MODEL.WEIGHTS", str(tmp_path / "none.pth")]))


def test_weights_are_not_needed_where_a_run_goes_on_from_its_checkpoint(tmp_path, caplog):
    opts = ["OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS"]
    with pytest.raises(InputError, match="does not exist"):
        check_weights(load_config("", [*opts, "none.pth"]), resume=True)
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    for weights in ("none.pth", ""):
        check_weights(load_config("", [*opts, weights]), resume=True)
    assert "random weights" not in caplog.text
    with pytest.raises(InputError, match="does not exist"):
        check_weights(load_config("", [*opts, "none.pth"]))
