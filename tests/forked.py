"""Scripts run as a user runs them, without the seconds that their imports take."""

import logging
import multiprocessing
import os
import runpy
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TextIO

import pytest
import torch
from detectron2.utils.logger import setup_logger

TIMEOUT = 300


def fork_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Detectron2's launcher fork its processes, too, rather than start new ones."""
    start = partial(torch.multiprocessing.start_processes, start_method="fork")
    monkeypatch.setattr(torch.multiprocessing, "start_processes", start)


def run(script: Path, *args: object) -> subprocess.CompletedProcess:
    """Run ``python -W ignore SCRIPT ARGS`` in a fork of this process, in which all is imported.

    Not for what evaluates panoptic segments: hotcoco's threads do not survive a fork.
    """
    command = [str(script), *map(str, args)]
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        process = multiprocessing.get_context("fork").Process(
            target=_main, args=(command, out, err)
        )
        process.start()
        process.join(TIMEOUT)
        status = process.exitcode
        process.kill()
        process.join()
        texts = [(file.seek(0), file.read())[1] for file in (out, err)]
    return subprocess.CompletedProcess(command, status, *texts)


def _main(command: list[str], out: TextIO, err: TextIO) -> None:
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", 1, closefd=False) for n in (1, 2))
    for logger in (logging.root, *map(logging.getLogger, logging.root.manager.loggerDict)):
        logger.handlers.clear()  # those of earlier tests
    setup_logger.cache_clear()
    warnings.simplefilter("ignore")
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
