"""The tables and the page of one or several studies, all of it from their results."""

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from .picture import draw
from .results import Result, read_results
from .statistics import LEAST_PAIRS, Arm, compare

COLUMNS = (
    *("metric", "upsampler", "runs", "mean", "sd", "difference", "95 % interval", "pairs"),
    *("p", "p, Holm", "training, s", "peak, MiB"),
)


def write_report(files: Sequence[Path], output: Path) -> None:
    """Print the tables of studies, and write them as ``report.md`` with ``report.png``.

    Args:
        files: results, one file a study.
        output: folder.

    Raises:
        InputError: a file that holds no results of a study.
    """
    page, studies = [], []
    for file, results in [(file, read_results(file)) for file in files]:
        config, arms = Path(results[0]["config"]["file"]), compare(results)
        title = config.stem if file.stem == "results" else file.stem
        studies.append((title, arms))
        notes = [f"- {note}" for note in _notes(results, arms)]
        print(title, _table(arms, "simple"), *notes, "", sep="\n")
        page += [f"### {title}", "", _table(arms, "github"), "", *notes, ""]
    output.mkdir(parents=True, exist_ok=True)
    if any(arm.differences for _, arms in studies for arm in arms):
        draw(output / "report.png", studies)
        page += ["![Paired differences to the baseline, means and 95 % intervals](report.png)", ""]
    (output / "report.md").write_text("\n".join(page))
    print(f"The page is {output / 'report.md'}")


def summary(path: str | Path) -> dict[str, dict[str, float]]:
    """The mean of each metric over the runs of each upsampler, in percent.

    Args:
        path: results of a study.

    Returns:
        By upsampler, NAME or NAME:OPTION=VALUE,..., and by metric, e.g. "box AP".

    Raises:
        InputError: the file holds no results of a study.
    """
    means: dict[str, dict[str, float]] = {}
    for arm in compare(read_results(path)):
        means.setdefault(arm.upsampler, {})[arm.metric] = arm.mean
    return means


def _table(arms: Sequence[Arm], style: str) -> str:
    rows = [
        [
            *(arm.metric, arm.upsampler, len(arm.values), f"{arm.mean:.2f}", _show(arm.sd, ".2f")),
            _show(arm.difference, "+.2f"),
            "{:+.2f} to {:+.2f}".format(*arm.interval) if arm.interval else "-",
            *(len(arm.differences) or "-", _show(arm.p, ".3g"), _show(arm.p_holm, ".3g")),
            *(f"{arm.seconds:,.0f}", f"{arm.peak_memory:,.0f}"),
        ]
        for arm in arms
    ]
    aligned = ["left" if name in ("metric", "upsampler") else "right" for name in COLUMNS]
    return tabulate(rows, COLUMNS, style, disable_numparse=True, colalign=aligned)


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _notes(results: Sequence[Result], arms: Sequence[Arm]) -> list[str]:
    """What the columns mean, what is missing, and where the results are from."""
    config, baseline = results[0]["config"], results[0]["baseline"]
    notes = [
        f"difference: mean of those to {baseline} with the same seed; interval: of that mean, by "
        "Student's t; p: two-sided, by flipping the signs of the differences; Holm: corrected for "
        "the number of upsamplers with a p",
        "training: the iterations alone; peak: allocated on the GPU, or resident on the CPU; "
        "medians of the runs",
    ]
    few = dict.fromkeys(arm.upsampler for arm in arms if arm.differences and not arm.interval)
    if few:
        notes.append(
            f"fewer than {LEAST_PAIRS} pairs, hence no interval and no p: {', '.join(few)}"
        )
    lacking = [
        f"{result['upsampler']} seed {result['seed']} {metric}"
        for result in results
        for metric, value in result["metrics"].items()
        if value is None and metric.endswith(("/AP", "/mIoU", "/PQ"))
    ]
    if lacking:
        notes.append(f"no number, and left out: {', '.join(lacking)}")
    origins = dict.fromkeys(
        f"{r['device']}, {r['jobs']} at a time, threads of each {r['threads']}, "
        + ", ".join(f"{name} {number}" for name, number in r["versions"].items() if number)
        + f", commit {r['commit']}"
        for r in results
    )
    options, keys = " ".join(config["options"]), " and ".join(config["compared"])
    return [*notes, f"{config['file']} {options}; compared: {keys}", *origins]
