"""What a study compares, and the runs that it takes."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from ..engine import check_datasets, check_model, check_weights, load_config
from ..engine.config_merge import config_items
from ..engine.run_checks import build_on_cpu
from ..engine.upsampler_checks import check_names_are_used, check_options_are_used, reads
from ..errors import MISFITS, InputError
from ..upsampler_arguments import parse_upsampler, upsampler_keys
from ..upsamplers import UPSAMPLER_REGISTRY, GuidedUpsampler
from .results import Result, read_results, write_json

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
            InputError: an upsampler, key, value, dataset or folder that cannot be used; an option
                in ``opts`` of an upsampler that not all models have.
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
            self._check_options(upsampler, own)
        baseline = self._config(upsampler_keys(self.keys, *parse_upsampler(self.baseline)))
        check_names_are_used(baseline, self.config_file, list(self.opts))
        for key in self.keys:
            if not reads(baseline, key):
                raise InputError(f"--key {key}: the model of {self.config_file!r} does not use it")
        if not cfg.DATASETS.TEST:
            raise InputError("DATASETS.TEST is empty: name a dataset to compare on")
        check_weights(cfg)
        check_datasets(cfg, train=True)
        self.results()
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

    def results(self) -> list[Result]:
        """Those in results.json: of earlier calls, or of another machine, whose file was put there.

        Raises:
            InputError: not a file of results, or of runs with other config keys than this study's.
        """
        path = self.output / "results.json"
        results = read_results(path) if path.exists() else []
        for result in results:
            for name, own in (("options", self.opts), ("compared", self.keys)):
                if result["config"][name] != list(own):
                    theirs = " ".join(result["config"][name]) or "none"
                    raise InputError(
                        f"results {str(path)!r} are of another study: {name} {theirs}, "
                        f"not {' '.join(own) or 'none'}"
                    )
        return results

    def record(self, *new: Result) -> list[Result]:
        """Add results to results.json, and return all that it then has."""
        results = [result | {"baseline": self.baseline} for result in (*self.results(), *new)]
        results.sort(key=lambda result: (result["upsampler"], result["seed"]))
        if results:
            write_json(self.output / "results.json", results)
        return results

    def _config(self, opts: Sequence[str]) -> CfgNode:
        return load_config(self.config_file, [*self.opts, *opts])

    def _check_options(self, upsampler: str, cfg: CfgNode) -> None:
        """Raise InputError if ``opts`` have options that the model with an upsampler has not."""
        try:
            build_on_cpu(cfg)
        except MISFITS:
            return  # as its runs will say
        try:
            check_options_are_used(cfg, list(self.opts))
        except InputError as error:
            raise InputError(
                f"{upsampler}: {error}; give those of an upsampler that is compared with its name, "
                "as LDAAQU:offset_range=5"
            ) from error

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
