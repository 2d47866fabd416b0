"""Training runs in a process of their own, to kill."""

import multiprocessing
import os
from argparse import Namespace
from pathlib import Path

import torch
from paths import ROOT


def start_run(config: Path, *opts: object, resume: bool = False) -> multiprocessing.Process:
    """Start what ``train_net.py`` does after its checks, with one thread.

    The process is forked, which spares it the imports; what it prints goes to ``<config>.log``.
    """
    process = multiprocessing.get_context("fork").Process(
        target=_run, args=(config, [str(opt) for opt in opts], resume)
    )
    process.start()
    return process


def finish_run(config: Path, *opts: object, resume: bool = False) -> int:
    """Run to the end: the exit status."""
    process = start_run(config, *opts, resume=resume)
    process.join()
    return process.exitcode


def _run(config: Path, opts: list[str], resume: bool) -> None:
    import runpy

    log = os.open(config.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    script = runpy.run_path(str(ROOT / "train_net.py"))
    cfg = script["load_config"](str(config), opts)
    cfg.freeze()
    script["run"](cfg, Namespace(config_file=str(config), resume=resume, eval_only=False))
