"""Training runs in processes of their own, which can be killed."""

import json
import logging
import multiprocessing
import re
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import default_argument_parser
from forked import fork_processes
from paths import ROOT


def start(
    config: Path, *opts: object, resume: bool = False, processes: int = 1
) -> multiprocessing.Process:
    """Start ``train_net.py``, without its checks, in so many processes of one thread.

    They are forked, which spares them the imports. What they print goes to :func:`log`.
    """
    process = multiprocessing.get_context("fork").Process(
        target=_run, args=(config, [str(opt) for opt in opts], resume, processes)
    )
    process.start()
    return process


def finish(config: Path, *opts: object, resume: bool = False, processes: int = 1) -> int:
    """Run to the end: the exit status."""
    return wait(start(config, *opts, resume=resume, processes=processes))


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


def assert_saved_by_sigterm(config: Path, output: Path) -> None:
    """Assert that a run has saved the iteration that SIGTERM came in."""
    printed = log(config)
    (iteration,) = set(re.findall("SIGTERM: saved after iteration ([0-9]+)", printed))
    saved = sorted(path.name for path in output.glob("*.pth"))
    assert saved[-1] == (output / "last_checkpoint").read_text() == f"model_{iteration:0>7}.pth"
    assert "Traceback" not in printed


def assert_one_line(config: Path, *words: str) -> None:
    """Assert that a run has printed one error, which has these words."""
    printed = log(config)
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and all(word in errors[0] for word in words), printed
    assert "Traceback" not in printed


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


def _run(config: Path, opts: list[str], resume: bool, processes: int) -> None:
    sys.stdout = sys.stderr = config.with_suffix(".log").open("a", buffering=1)
    logger = logging.getLogger("lda_aqu")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler(sys.stdout))
    logging.raiseExceptions = False
    torch.set_num_threads(1)
    script = runpy.run_path(str(ROOT / "train_net.py"))
    cfg = script["load_config"](str(config), opts)
    cfg.freeze()
    arguments = default_argument_parser().parse_args(["--num-gpus", str(processes)])
    arguments.config_file, arguments.resume, arguments.dist_url = str(config), resume, "auto"
    fork_processes(pytest.MonkeyPatch())
    script["exit_on_input_error"](script["launch"])(script["run"], cfg, arguments)
