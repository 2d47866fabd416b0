"""Training runs in processes of their own, which can be killed."""

import json
import logging
import multiprocessing
import runpy
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from paths import ROOT


def start(config: Path, *opts: object, resume: bool = False) -> multiprocessing.Process:
    """Start ``train_net.py``, without its checks, on one thread.

    The process is forked, which spares it the imports. What it prints goes to :func:`log`.
    """
    process = multiprocessing.get_context("fork").Process(
        target=_run, args=(config, [str(opt) for opt in opts], resume)
    )
    process.start()
    return process


def finish(config: Path, *opts: object, resume: bool = False) -> int:
    """Run to the end: the exit status."""
    return wait(start(config, *opts, resume=resume))


def wait(process: multiprocessing.Process) -> int | None:
    """Wait for the end of a run: the exit status, None where it has to be killed."""
    process.join(200)
    status = process.exitcode
    process.kill()
    process.join()
    return status


def log(config: Path) -> str:
    """What the runs of a config have printed."""
    return config.with_suffix(".log").read_text()


def wait_for(condition: Callable[[], bool], process: multiprocessing.Process) -> None:
    """Return when a run has come so far."""
    deadline = time.monotonic() + 240
    while not condition():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)


def metrics(output: Path) -> list[dict[str, float]]:
    """The records of a run, without those of the clock."""
    lines = (output / "metrics.json").read_text().splitlines()
    clock = {"time", "data_time", "rank_data_time", "eta_seconds"}
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def assert_same(output: Path, expected: Path) -> None:
    """Assert that two runs have ended with the same weights, optimizer, losses and metrics."""
    _assert_equal(*(torch.load(folder / "model_final.pth") for folder in (output, expected)))
    found, wanted = metrics(output), metrics(expected)
    assert [r["iteration"] for r in found] == [r["iteration"] for r in wanted]
    for record, other in zip(found, wanted, strict=True):
        assert record.items() == other.items()


def _assert_equal(a: Any, b: Any, name: str = "") -> None:
    assert type(a) is type(b), name
    if isinstance(a, dict):
        own = ("time", "eta_seconds", "run_id", "config")
        names = [key for key in a if not str(key).endswith(own)]
        assert set(a) == set(b), name
        for key in names:
            _assert_equal(a[key], b[key], f"{name}.{key}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), name
    else:
        assert a == b, name


def _run(config: Path, opts: list[str], resume: bool) -> None:
    sys.stdout = sys.stderr = config.with_suffix(".log").open("a", buffering=1)
    logger = logging.getLogger("lda_aqu")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler(sys.stdout))
    logging.raiseExceptions = False
    torch.set_num_threads(1)
    script = runpy.run_path(str(ROOT / "train_net.py"))
    cfg = script["load_config"](str(config), opts)
    cfg.freeze()
    arguments = Namespace(config_file=str(config), resume=resume, eval_only=False)
    script["exit_on_input_error"](script["run"])(cfg, arguments)
