"""The metrics of a run, ``metrics.json`` in its output folder: a JSON object a line."""

import json
import logging
import os
from datetime import datetime
from pathlib import Path

from .exact_resume import metrics_written

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"


def set_aside_metrics(output_dir: str) -> None:
    """Rename the metrics file of an earlier run, if there is one, so that a new run has its own."""
    path = Path(output_dir) / METRICS_FILE
    if path.exists():
        stamp = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y%m%d-%H%M%S")
        kept = path.rename(path.with_name(f"metrics-{stamp}.json"))
        logger.info("The metrics of an earlier run are kept in %s", kept)


def read_metrics(output_dir: str) -> list[dict[str, float]]:
    """The records, none where there is no file."""
    path = Path(output_dir) / METRICS_FILE
    if not path.exists():
        return []
    with path.open() as file:
        return [json.loads(line) for line in file]


def truncate_metrics(output_dir: str, start_iter: int, max_iter: int) -> None:
    """Drop what a run that starts at ``start_iter`` writes again.

    That is what the run that is resumed had written since, and an unfinished last line. The file
    is cut in place: a writer that has it open for appending goes on at its new end.
    """
    path = Path(output_dir) / METRICS_FILE
    if not path.exists():
        return
    records = []
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                records.append((len(line), json.loads(line)))
    # The evaluation after a run's last iteration is recorded at the one that would follow. A run
    # that is prolonged keeps it, and one that has nothing else left to do repeats it.
    ended = records and records[-1][1]["iteration"] == start_iter
    keep = 0
    for length, record in records:
        done = record["iteration"] + ("total_loss" in record)
        if start_iter >= max_iter:
            kept = record["iteration"] < start_iter
        elif ended and "total_loss" not in records[-1][1]:
            kept = done <= start_iter
        else:
            kept = done <= metrics_written(start_iter)
        if not kept:
            break
        keep += length
    os.truncate(path, keep)
