"""The metrics of a run, ``metrics.json`` in its output folder: a JSON object a line."""

import json
import logging
import os
import shutil
from pathlib import Path

from ..files import unused_name
from .exact_resume import metrics_written

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"


def read_metrics(output_dir: str) -> list[dict[str, float]]:
    """The records, without lines that hold none; an empty list where there is no file."""
    return [record for _, record in _read_lines(Path(output_dir) / METRICS_FILE) if record]


def truncate_metrics(output_dir: str, start_iter: int, max_iter: int) -> None:
    """Drop what a run that starts at ``start_iter`` writes again, and what is no record.

    The former is what the run that is resumed had written since. The latter is an unfinished last
    line, and what a power cut has damaged: then the file as it was is kept under another name. The
    file is cut in place: a writer that has it open for appending goes on at its new end.
    """
    path = Path(output_dir) / METRICS_FILE
    lines = _read_lines(path)
    records = [(line, record) for line, record in lines if record]
    # The evaluation after a run's last iteration is recorded at the one that would follow. A run
    # that is prolonged keeps it, and one that has nothing else left to do repeats it.
    ended = records and records[-1][1]["iteration"] == start_iter
    kept = b""
    for line, record in records:
        done = record["iteration"] + ("total_loss" in record)
        if start_iter >= max_iter:
            before = record["iteration"] < start_iter
        elif ended and "total_loss" not in records[-1][1]:
            before = done <= start_iter
        else:
            before = done <= metrics_written(start_iter)
        if not before:
            break
        kept += line
    damaged = sum(not record for _, record in lines[:-1])
    if damaged:
        copy = shutil.copy2(path, unused_name(path))
        logger.warning("%d lines of %s are no metrics: it is kept as %s", damaged, path, copy.name)
        with path.open("r+b") as file:
            file.write(kept)
    if lines:
        os.truncate(path, len(kept))


def _read_lines(path: Path) -> list[tuple[bytes, dict[str, float] | None]]:
    """The lines of a file, each with its record, or None."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    return [(line, _parse(line)) for line in lines]


def _parse(line: bytes) -> dict[str, float] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = line.endswith(b"\n") and isinstance(record, dict)
    return record if whole and isinstance(record.get("iteration"), int) else None
