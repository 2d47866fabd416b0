"""Processes on the CPU, as train_net.py starts them; what they do is in functions of this file."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2 import engine
from detectron2.config import CfgNode
from detectron2.engine import create_ddp_model, default_argument_parser
from detectron2.layers import get_norm
from detectron2.utils import comm
from forked import fork_processes
from lda_aqu.engine import Trainer, find_processes, launch
from lda_aqu.engine.launch import TORCHRUN_VARIABLES, _run_in_child
from lda_aqu.errors import InputError
from torch import distributed, nn

FORK = multiprocessing.get_context("fork")

CFG = CfgNode({"MODEL": {"DEVICE": "cpu"}, "DATASETS": {"TEST": ()}})


def arguments(*args: str) -> Namespace:
    parser = default_argument_parser()
    parser.set_defaults(dist_url="auto")
    return parser.parse_args(args)


def report(cfg: CfgNode, args: Namespace) -> None:
    """Write what a process knows of itself and the others, and compute in all of them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), get_norm("naiveSyncBN", 4))
    share = torch.arange(4 * 3 * 5 * 5.0).view(4, 3, 5, 5).sin()[comm.get_rank() :: 2]
    create_ddp_model(model, broadcast_buffers=False, device_ids=None)(share).square().mean()
    running_var = model[1].running_var.clone()
    model[1].running_var.fill_(comm.get_rank())
    Trainer.test(cfg, model)
    facts = {
        "ranks": comm.all_gather((comm.get_rank(), comm.get_local_rank(), comm.get_local_size())),
        "backend": distributed.get_backend(),
        "threads": os.environ["OMP_NUM_THREADS"],
        "running_var": running_var,
        "evaluated_with": model[1].running_var,
    }
    torch.save(facts, args.opts[0] + f"/{comm.get_rank()}.pt")


def test_processes_are_connected_and_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    fork_processes(monkeypatch)
    launch(report, CFG, arguments("--num-gpus", "2", str(tmp_path)))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["ranks"] == second["ranks"] == [(0, 0, 2), (1, 1, 2)]
    assert first["backend"] == "gloo"
    assert first["threads"] == str(max(1, len(os.sched_getaffinity(0)) // 2))

    # Batch normalisation that is synchronised is that of the whole batch.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), get_norm("BN", 4))
    images = torch.arange(4 * 3 * 5 * 5.0).view(4, 3, 5, 5).sin()
    values = model[0](images).detach()
    expected = 0.9 + 0.1 * values.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(first["running_var"], expected)
    torch.testing.assert_close(second["running_var"], expected)
    # An evaluation is of the main process's statistics, which are those that are saved.
    assert first["evaluated_with"].tolist() == second["evaluated_with"].tolist() == [0.0] * 4


def make_a_mistake(cfg: CfgNode, args: Namespace) -> None:
    if comm.get_rank() == 1:
        raise InputError("one mistake")
    comm.synchronize()
    time.sleep(60)


def test_a_mistake_in_one_process_ends_all_of_them(monkeypatch):
    fork_processes(monkeypatch)
    start = time.monotonic()
    with pytest.raises(InputError, match="^one mistake$"):
        launch(make_a_mistake, CFG, arguments("--num-gpus", "2"))
    assert time.monotonic() - start < 50


def exit_on_sigterm(cfg: CfgNode, args: Namespace) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    comm.synchronize()
    Path(args.opts[0], f"{comm.get_rank()}").touch()
    time.sleep(60)


def test_sigterm_is_passed_on_and_the_status_of_the_processes_is_that_of_all(tmp_path, monkeypatch):
    fork_processes(monkeypatch)

    def terminate() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=terminate, daemon=True).start()
    with pytest.raises(SystemExit) as ended:
        launch(exit_on_sigterm, CFG, arguments("--num-gpus", "2", str(tmp_path)))
    assert ended.value.code == 7
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_process_is_this_one():
    calls = []
    launch(lambda cfg, args: calls.append((cfg, args, os.getpid())), CFG, arguments())
    assert calls == [(CFG, arguments(), os.getpid())]
    assert not distributed.is_initialized()


def test_torchrun_is_found_by_its_variables(monkeypatch):
    for variable in TORCHRUN_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    args = arguments("--num-gpus", "4", "--num-machines", "2", "--machine-rank", "1")
    assert find_processes(args) == (8, 4, 4, 0, False)
    for variable, value in zip(TORCHRUN_VARIABLES, ("5", "8", "1", "4"), strict=True):
        monkeypatch.setenv(variable, value)
    assert find_processes(arguments()) == (8, 4, 5, 1, True)


@pytest.mark.parametrize(
    "values",
    [("x", "2", "0", "2"), ("", "2", "0", "2"), ("2", "2", "0", "2"), ("1", "2", "2", "2")],
)
def test_variables_of_torchrun_that_are_damaged(monkeypatch, values):
    for variable, value in zip(TORCHRUN_VARIABLES, values, strict=True):
        monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=f"do not fit each other: RANK={values[0]}, WORLD_SIZE=2"):
        find_processes(arguments())


def test_processes_of_torchrun_that_find_no_other(monkeypatch):
    for variable, value in zip(TORCHRUN_VARIABLES, ("0", "2", "0", "2"), strict=True):
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError, match="cannot be connected: .*MASTER_ADDR"):
        launch(report, CFG, arguments())


def test_an_address_that_cannot_be_reached(monkeypatch):
    fork_processes(monkeypatch)
    with pytest.raises(InputError, match="--dist-url foo://x cannot be reached: .*foo"):
        launch(report, CFG, arguments("--num-gpus", "2", "--dist-url", "foo://x"))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_no_process_outlives_an_interrupt_of_the_one_that_started_it(monkeypatch):
    def interrupted(*args: object, **kwargs: object) -> None:
        FORK.Process(target=time.sleep, args=(60,)).start()
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "launch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        launch(report, CFG, arguments("--num-gpus", "2"))
    wait_until(lambda: not multiprocessing.active_children())


def start_one_that_ignores_interrupts(folder: Path) -> None:
    """As a process is that was started by a job in the background of a shell."""

    def run(cfg: CfgNode, args: Namespace) -> None:
        (folder / str(os.getpid())).touch()
        time.sleep(60)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    FORK.Process(target=_run_in_child, args=(run, CFG, arguments(), FORK.SimpleQueue())).start()
    time.sleep(60)


def test_no_process_outlives_the_killed_one_that_started_it(tmp_path):
    parent = FORK.Process(target=start_one_that_ignores_interrupts, args=(tmp_path,))
    parent.start()
    wait_until(lambda: any(tmp_path.iterdir()))
    (child,) = (int(path.name) for path in tmp_path.iterdir())
    assert is_running(child)
    parent.kill()
    parent.join()
    wait_until(lambda: not is_running(child))


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not only its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
