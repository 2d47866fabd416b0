"""Doing the runs of a study side by side."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from detectron2.config import CfgNode
from tqdm import tqdm

from ..engine.metrics_file import read_metrics
from ..errors import InputError
from ..upsampler_arguments import parse_upsampler
from .plan import Run, Study
from .results import measured, provenance


def run_all(
    study: Study, cfg: CfgNode, seeds: Sequence[int], script: Path, jobs: int, threads: int
) -> list[Path]:
    """Do the runs of a study that are not done; those that fail are reported, and others go on.

    Where an exception, as that of Ctrl-C, interrupts this, the runs are told to save and to end,
    and another call goes on with them; a second one kills them.

    Args:
        study: what to run, after :meth:`Study.prepare`.
        cfg: what that gave.
        seeds: the SEED of each run of an upsampler.
        script: train_net.py.
        jobs: runs at a time.
        threads: of each on the CPU.

    Returns:
        The logs of those that failed.

    Raises:
        InputError: there are results of another config file.
    """
    about = provenance(cfg.MODEL.DEVICE, script.parent) | {"threads": threads, "jobs": jobs}
    # Named alike on all machines, wherever the study is started.
    file = os.path.relpath(study.config_file, script.parent)
    about["config"] = {"file": file, "options": study.opts, "compared": study.keys}
    runs, steps = study.runs(seeds), cfg.SOLVER.MAX_ITER
    waiting: list[Run] = []
    going: dict[subprocess.Popen, Run] = {}
    failed: list[Path] = []

    def collect(wait: bool) -> None:
        for process, run in list(going.items()):
            pid, status, usage = os.wait4(process.pid, 0 if wait else os.WNOHANG)
            if not pid:
                continue
            del going[process]
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode == 0:
                named = {"seed": run.seed, "upsampler": run.upsampler}
                named["options"] = parse_upsampler(run.upsampler)[1]
                study.record(named | measured(run.folder, usage.ru_maxrss) | about)
            elif not wait:
                failed.append(run.log)
                last = run.log.read_text(errors="replace").strip().rpartition("\n")[2]
                what = f"{run.upsampler} with seed {run.seed} failed ({process.returncode})"
                tqdm.write(f"{what}: {last}\n  see {run.log}", file=sys.stderr)

    with _locked(study.output) as lock, tqdm(total=len(runs) * steps, unit="iteration") as bar:
        done = set()
        for result in study.results():
            if result["config"]["file"] != file:
                raise InputError(
                    f"{str(study.output / 'results.json')!r} has results of the config "
                    f"{result['config']['file']!r}, not {file!r}"
                )
            done.add((result["upsampler"], result["seed"]))
        waiting += [run for run in reversed(runs) if (run.upsampler, run.seed) not in done]
        bar.initial = bar.n = (len(runs) - len(waiting)) * steps
        try:
            while waiting or going:
                while waiting and len(going) < jobs:
                    run = waiting.pop()
                    going[_start(study.command(script, run), run, threads, lock)] = run
                time.sleep(0.2)
                collect(wait=False)
                ended = len(runs) - len(waiting) - len(going)
                state = f"{ended} of {len(runs)} runs, {len(failed)} failed"
                bar.set_postfix_str(state, refresh=False)
                now = ended * steps + sum(_iterations(run) for run in going.values())
                if now != bar.n:  # a log has a line for each update
                    bar.update(now - bar.n)
        finally:
            try:
                for process in going:  # Popen.terminate might reap it, and its usage be lost
                    os.kill(process.pid, signal.SIGTERM)
                collect(wait=True)
            finally:
                for process in going:
                    os.kill(process.pid, signal.SIGKILL)
    return failed


def _start(command: list[str], run: Run, threads: int, lock: int) -> subprocess.Popen:
    """Start a run, in a group of its own: Ctrl-C in the terminal is for the study alone."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with run.log.open("a") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            pass_fds=[lock],
            start_new_session=True,
        )


def _iterations(run: Run) -> int:
    """How many it has written down."""
    records = read_metrics(str(run.folder))
    return max((int(record["iteration"]) + 1 for record in records), default=0)


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Wait until no run of an earlier start is left in the folder, and keep later starts waiting.

    The runs inherit the file, and the lock with it: it outlives a study that is killed.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Runs of an earlier start in {folder} are still going: waiting for their end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
