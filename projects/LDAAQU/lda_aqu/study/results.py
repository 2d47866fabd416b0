"""What a run came to, and the JSON files of such results."""

import json
import math
import platform
import re
import subprocess
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import detectron2
import torch

from ..cpu import cpu_name
from ..engine.metrics_file import read_metrics
from ..errors import InputError
from ..files import atomic_write

Result = dict[str, Any]
"""One run.

``seed``, ``upsampler`` (NAME or NAME:OPTION=VALUE,...), ``options`` of it, ``metrics`` of the last
evaluation in percent by their names in ``metrics.json`` (None for no number, as the AP of a model
that finds nothing), ``seconds`` of training, ``peak_memory`` in MiB, ``config`` (``file``,
``options`` that all runs have, the keys that are ``compared``), ``baseline`` of the study,
``device``, ``threads``, ``jobs``, ``versions``, ``commit``.
"""

_EVALUATED = re.compile(r"(?:^|/)(?:bbox|segm|sem_seg|panoptic_seg)/")
_FIELDS = {
    *("seed", "upsampler", "options", "metrics", "seconds", "peak_memory", "config", "baseline"),
    *("device", "threads", "jobs", "versions", "commit"),
}
_CONFIG_FIELDS = {"file", "options", "compared"}


def measured(folder: Path, resident_kib: int) -> Result:
    """Metrics, seconds and memory of a run that has ended.

    Seconds are those of training iterations, with their data, without start, evaluations and
    checkpoints. Memory is what PyTorch has allocated on the GPU at most, or on a CPU the peak of
    the resident memory of the process that ended the run.
    """
    records = read_metrics(str(folder))
    found = [{k: v for k, v in record.items() if _EVALUATED.search(k)} for record in records]
    seconds, done = 0.0, 0
    for record in records:
        if "time" in record:  # the median of the iterations since the record before
            seconds += record["time"] * (record["iteration"] + 1 - done)
            done = record["iteration"] + 1
    on_gpu = [record["max_mem"] for record in records if "max_mem" in record]
    return {
        "metrics": {
            k: v if math.isfinite(v) else None for k, v in [*filter(None, found)][-1].items()
        },
        "seconds": seconds,
        "peak_memory": max(on_gpu, default=resident_kib / 1024),
    }


def provenance(device: str, repository: Path) -> Result:
    """The name of the device, the versions of what computes, and the commit of the repository."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_name()
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        command = ["git", "-C", str(repository), *describe]
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:  # there is no git
        commit = ""
    return {
        "device": name,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "detectron2": detectron2.__version__,
            "lda_aqu": version("lda-aqu"),
        },
        "commit": commit or None,
    }


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, of which an interruption leaves the old content or the new one."""
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def read_results(path: str | Path) -> list[Result]:
    """The results of a study.

    Raises:
        InputError: not a file of such results, or not of one study.
    """
    try:
        results = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"results {str(path)!r} cannot be read: {error}") from error
    if not results or not isinstance(results, list) or not all(_is_result(r) for r in results):
        raise InputError(
            f"results {str(path)!r} must be a list of objects with {', '.join(sorted(_FIELDS))}"
        )
    studies = {(r["baseline"], r["config"]["file"], *r["config"]["compared"]) for r in results}
    if len(studies) > 1:
        raise InputError(f"results {str(path)!r} are of several studies: {sorted(studies)}")
    runs = Counter((r["upsampler"], r["seed"]) for r in results)
    (upsampler, seed), number = runs.most_common(1)[0]
    if number > 1:
        raise InputError(f"results {str(path)!r}: {number} of {upsampler} with seed {seed}")
    return results


def _is_result(item: Any) -> bool:
    if not isinstance(item, dict) or not item.keys() >= _FIELDS:
        return False
    return isinstance(item["config"], dict) and item["config"].keys() >= _CONFIG_FIELDS
