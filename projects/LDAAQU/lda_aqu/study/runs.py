"""The runs of a study: what each is, and having them done side by side."""

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from tqdm import tqdm

from ..engine import check_datasets, check_model, check_weights, load_config
from ..engine.config_merge import config_items
from ..errors import InputError
from ..upsampler_arguments import parse_upsampler, upsampler_keys
from ..upsamplers import UPSAMPLER_REGISTRY, GuidedUpsampler
from .results import Result, measured, provenance, read_metrics, write_json

COMPARED = "compared"
"""In the config of a study, in the place of the upsampler's name."""


def parse_seeds(text: str) -> list[int]:
    """``"1-3,7"`` to [1, 2, 3, 7]; InputError where it is not of this form."""
    seeds: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        named = range(int(found[1]), int(found[2] or found[1]) + 1) if found else ()
        if not named:
            raise InputError(f"--seeds {text!r}: give numbers and ranges, e.g. 1-10 or 1,2,7-9")
        seeds.update(named)
    return sorted(seeds)


@dataclass(frozen=True)
class Run:
    """One training: of an upsampler, NAME or NAME:OPTION=VALUE,..., with a seed, in a folder."""

    upsampler: str
    seed: int
    folder: Path

    @property
    def result(self) -> Path:
        """The file that is there once the run is complete."""
        return self.folder / "result.json"

    @property
    def log(self) -> Path:
        """The file with all that it prints."""
        return self.folder / "console.log"


@dataclass(frozen=True)
class Study:
    """What is compared, in which model.

    Args:
        config_file: the model's config.
        opts: ``(KEY, VALUE, ...)`` merged into it in all runs.
        keys: those that name the upsampler that is compared.
        upsamplers: NAME or NAME:OPTION=VALUE,... each.
        baseline: one of them.
        output: folder of all runs.
    """

    config_file: str
    opts: tuple[str, ...]
    keys: tuple[str, ...]
    upsamplers: tuple[str, ...]
    baseline: str
    output: Path

    def prepare(self) -> CfgNode:
        """Check what can be known before any run, and make the folder: the study's config.

        That is an upsampler of a kind that a key does not allow, too. Options whose values do not
        fit the model are named by the runs, and the others go on.

        Raises:
            InputError: an upsampler, key, value, dataset or folder that cannot be used.
        """
        cfg = self._config([text for key in self.keys for text in (key, COMPARED)])
        if self.baseline not in self.upsamplers:
            compared = ", ".join(self.upsamplers)
            raise InputError(f"--baseline {self.baseline!r}: not among {compared}")
        for upsampler in self.upsamplers:
            own = self._config(upsampler_keys(self.keys, *parse_upsampler(upsampler)))
            cls = UPSAMPLER_REGISTRY.get(upsampler.partition(":")[0])
            if upsampler == self.baseline or issubclass(cls, GuidedUpsampler):
                check_model(own)
        for key in self.keys:
            self._check_is_used(key)
        if not cfg.DATASETS.TEST:
            raise InputError("DATASETS.TEST is empty: name a dataset to compare on")
        check_weights(cfg)
        check_datasets(cfg, train=True)
        self._claim_output(cfg)
        return cfg

    def runs(self, seeds: Sequence[int]) -> list[Run]:
        """All runs, seed by seed with the baseline first, so that pairs are complete early."""
        folders = {
            upsampler: self.output / re.sub(r"[^\w.,=+-]", "_", upsampler)
            for upsampler in (self.baseline, *self.upsamplers)
        }
        return [Run(u, seed, folders[u] / f"seed_{seed}") for seed in seeds for u in folders]

    def command(self, script: Path, run: Run) -> list[str]:
        """The command of a run, which resumes it where there is a checkpoint."""
        resume = ["--resume"] if (run.folder / "last_checkpoint").exists() else []
        return [
            *(sys.executable, "-W", "ignore", str(script), "--config-file", self.config_file),
            *(*resume, *self.opts, *upsampler_keys(self.keys, *parse_upsampler(run.upsampler))),
            *("SEED", str(run.seed), "OUTPUT_DIR", str(run.folder)),
        ]

    def gather(self) -> list[Result]:
        """Write the results of all runs in the folder, of earlier calls too, as results.json."""
        found = [json.loads(p.read_text()) for p in self.output.glob("*/seed_*/result.json")]
        found.sort(key=lambda result: (result["upsampler"], result["seed"]))
        results = [result | {"baseline": self.baseline} for result in found]
        write_json(self.output / "results.json", results)
        return results

    def _config(self, opts: Sequence[str]) -> CfgNode:
        return load_config(self.config_file, [*self.opts, *opts])

    def _check_is_used(self, key: str) -> None:
        """Raise InputError unless the model is built with the upsampler that a key names."""
        try:
            check_model(self._config([key, COMPARED]))
        except InputError as error:
            if str(error).startswith(f"{key} {COMPARED!r}"):
                return
            raise
        raise InputError(f"--key {key}: the model of {self.config_file!r} does not use it")

    def _claim_output(self, cfg: CfgNode) -> None:
        """Note the config in the folder; InputError where it is that of another study."""
        path = self.output / "study.yaml"
        cfg = cfg.clone()
        cfg.SEED, cfg.OUTPUT_DIR = -1, ""
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_text(cfg.dump())
            earlier = dict(config_items(CfgNode.load_cfg(path.read_text())))
        except OSError as error:
            raise InputError(f"--output {str(self.output)!r} cannot be used: {error}") from error
        for key, value in config_items(CfgNode.load_cfg(cfg.dump())):
            was = earlier.get(key, value)  # a key that there was not yet makes no other study
            if was != value and not isinstance(value, CfgNode):
                raise InputError(
                    f"--output {str(self.output)!r} is of another study, in which {key} is {was!r} "
                    f"and not {value!r}: name another folder"
                )


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
    """
    about = provenance(cfg.MODEL.DEVICE, script.parent) | {"threads": threads, "jobs": jobs}
    file = os.path.relpath(study.config_file)
    about["config"] = {"file": file, "options": study.opts, "compared": study.keys}
    runs = study.runs(seeds)
    waiting = [run for run in runs if not run.result.exists()][::-1]
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
                write_json(run.result, named | measured(run.folder, usage.ru_maxrss) | about)
                study.gather()
            elif not wait:
                failed.append(run.log)
                last = run.log.read_text(errors="replace").strip().rpartition("\n")[2]
                what = f"{run.upsampler} with seed {run.seed} failed ({process.returncode})"
                tqdm.write(f"{what}: {last}\n  see {run.log}", file=sys.stderr)

    steps = cfg.SOLVER.MAX_ITER
    total, done = len(runs) * steps, (len(runs) - len(waiting)) * steps
    with (
        _locked(study.output) as lock,
        tqdm(total=total, initial=done, unit="iteration") as bar,
    ):
        try:
            while waiting or going:
                while waiting and len(going) < jobs:
                    run = waiting.pop()
                    going[_start(study.command(script, run), run, threads, lock)] = run
                time.sleep(0.2)
                collect(wait=False)
                ended = len(runs) - len(waiting) - len(going)
                bar.n = ended * steps + sum(_iterations(run) for run in going.values())
                bar.set_postfix_str(f"{ended} of {len(runs)} runs, {len(failed)} failed")
        finally:
            try:
                for process in going:
                    process.terminate()
                collect(wait=True)
            finally:
                for process in going:
                    process.kill()
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
    return max((int(record["iteration"]) + 1 for record in read_metrics(run.folder)), default=0)


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
