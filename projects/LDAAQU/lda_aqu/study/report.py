"""The tables and the page of one or several studies, all of it from their results."""

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from .picture import draw
from .results import Result, read_results
from .statistics import LEAST_PAIRS, Arm, compare


def write_report(files: Sequence[Path], output: Path) -> None:
    """Print the tables of studies, and write them as ``report.md`` with ``report.png``.

    Args:
        files: results, one file a study.
        output: folder.

    Raises:
        InputError: a file that holds no results of a study.
    """
    studies = [read_results(file) for file in files]
    arms = {
        _title(results, file): compare(results)
        for results, file in zip(studies, files, strict=True)
    }
    output.mkdir(parents=True, exist_ok=True)
    page = []
    for results, (title, rows) in zip(studies, arms.items(), strict=True):
        notes = [f"- {note}" for note in _notes(results, rows)]
        print(title, _table(rows, "simple"), *notes, "", sep="\n")
        page += [f"### {title}", "", _table(rows, "github"), "", *notes, ""]
    if any(arm.differences for rows in arms.values() for arm in rows):
        draw(output / "report.png", arms)
        page += ["![Paired differences to the baseline and their 95 % intervals](report.png)", ""]
    (output / "report.md").write_text("\n".join(page))
    print(f"The page is {output / 'report.md'}")


def summary(path: str | Path) -> dict[str, dict[str, float]]:
    """The mean of each metric over the runs of each upsampler, in percent.

    Args:
        path: results of a study.

    Returns:
        By upsampler, NAME or NAME:OPTION=VALUE,..., and by metric, e.g. "box AP".
    """
    means: dict[str, dict[str, float]] = {}
    for arm in compare(read_results(path)):
        means.setdefault(arm.upsampler, {})[arm.metric] = arm.mean
    return means


def _title(results: Sequence[Result], file: Path) -> str:
    return f"{Path(results[0]['config']['file']).stem} ({file.stem})"


def _table(arms: Sequence[Arm], style: str) -> str:
    headers = (
        *("metric", "upsampler", "runs", "mean", "sd", "difference", "95 % interval"),
        *("pairs", "p", "p, Holm", "training, s", "peak, MiB"),
    )
    rows = [
        [
            *(arm.metric, arm.upsampler, len(arm.values), f"{arm.mean:.2f}", _show(arm.sd, ".2f")),
            _show(arm.difference, "+.2f"),
            f"{arm.interval[0]:+.2f} to {arm.interval[1]:+.2f}" if arm.interval else "-",
            len(arm.differences) or "-",
            *(_show(arm.p, ".3g"), _show(arm.p_holm, ".3g")),
            *(f"{arm.seconds:,.0f}", f"{arm.peak_memory:,.0f}"),
        ]
        for arm in arms
    ]
    aligned = ["left", "left", *["right"] * 10]
    return tabulate(rows, headers, style, disable_numparse=True, colalign=aligned)


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _notes(results: Sequence[Result], arms: Sequence[Arm]) -> list[str]:
    """What the columns mean, what is missing, and where the results are from."""
    first = results[0]
    compared = max(1, len({arm.upsampler for arm in arms if arm.differences}))
    notes = [
        f"difference: mean of the differences to {first['baseline']} with the same seed; its "
        "interval by Student's t; p: two-sided, of flipping the signs of the differences; Holm: "
        f"corrected for {compared} compared",
        "training: the iterations alone; peak: allocated on the GPU, or resident on the CPU; "
        "medians of the runs",
    ]
    few = {arm.upsampler for arm in arms if arm.differences and not arm.interval}
    if few:
        notes.append(
            f"fewer than {LEAST_PAIRS} pairs, hence no interval and no p: {', '.join(sorted(few))}"
        )
    lacking = [
        f"{result['upsampler']} seed {result['seed']} {metric}"
        for result in results
        for metric, value in result["metrics"].items()
        if value is None and metric.endswith(("/AP", "/mIoU", "/PQ"))
    ]
    if lacking:
        notes.append(f"no number, and left out: {', '.join(lacking)}")
    config = first["config"]
    notes.append(
        f"config {config['file']} {' '.join(config['options'])}".rstrip()
        + f", with other {' and '.join(config['compared'])}"
    )
    notes.append("; ".join(_origins(results)))
    return notes


def _origins(results: Sequence[Result]) -> list[str]:
    """Devices, versions and commits, each once."""
    shown: dict[str, None] = {}
    for result in results:
        versions = result["versions"]
        shown[f"{result['device']}, {result['jobs']} at a time of {result['threads']} threads"] = (
            None
        )
        shown[", ".join(f"{name} {number}" for name, number in versions.items() if number)] = None
        shown[f"commit {result['commit']}"] = None
    return list(shown)
