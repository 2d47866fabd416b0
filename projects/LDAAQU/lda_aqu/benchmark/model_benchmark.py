"""Time and memory of whole models, and of a model's twin that differs in the upsampler alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from .measure import interleaved_times, peak_memory, summarize
from .model_workload import ModelWorkload
from .report import Table

MIB = 2**20


@dataclass(frozen=True)
class ModelMeasurement:
    """One part of one model.

    Args:
        model: its label.
        part: see :class:`ModelWorkload`.
        seconds: median, minimum and maximum.
        peak_bytes: beyond the model and its images; None where it cannot be known.
        relative: median time over that of the first model.
    """

    model: str
    part: str
    seconds: dict[str, float]
    peak_bytes: int | None
    relative: float


def measure_models(
    models: dict[str, ModelWorkload], parts: Sequence[str], repeats: int
) -> list[ModelMeasurement]:
    """Measure parts of models, in turns; ratios are to the first model."""
    results = []
    for part in parts:
        work = {label: replace(model, part=part) for label, model in models.items()}
        runs = {label: workload.prepare() for label, workload in work.items()}
        device = next(iter(models.values())).setting.device
        times = interleaved_times(runs, repeats, device, part)
        seconds = {label: summarize(values) for label, values in times.items()}
        first = next(iter(seconds.values()))["median"]
        results += [
            ModelMeasurement(
                label,
                part,
                seconds[label],
                peak_memory(workload, device, torch.get_num_threads()),
                seconds[label]["median"] / first,
            )
            for label, workload in tqdm(
                work.items(), desc=f"{part}, memory", unit="model", leave=False
            )
        ]
    return results


def model_table(title: str, measurements: Sequence[ModelMeasurement]) -> Table:
    """All measurements, in the order given."""
    return Table(
        title,
        ("part", "model", "median ms", "min ms", "max ms", "relative", "peak MiB"),
        [
            (
                m.part,
                m.model,
                *(1e3 * m.seconds[key] for key in ("median", "min", "max")),
                f"{m.relative - 1:+.1%}",
                None if m.peak_bytes is None else m.peak_bytes / MIB,
            )
            for m in measurements
        ],
        (
            "relative: the median beside that of the first model of the part",
            "peak: memory beyond the model and its images at its highest",
            "weights are random and images are noise; no box suppresses another, so that all "
            "models work on as many boxes",
        ),
    )


def plot_models(path: Path, measurements: Sequence[ModelMeasurement]) -> None:
    """Bars of the time of each part."""
    parts = list(dict.fromkeys(m.part for m in measurements))
    figure = Figure(figsize=(4.5 * len(parts) + 2, 3), layout="constrained")
    for column, part in enumerate(parts):
        axes = figure.add_subplot(1, len(parts), column + 1)
        found = [m for m in measurements if m.part == part]
        bars = axes.barh([m.model for m in found], [1e3 * m.seconds["median"] for m in found])
        axes.bar_label(bars, [f"{m.relative - 1:+.1%}" for m in found], padding=3)
        axes.margins(x=0.3)
        axes.invert_yaxis()
        axes.set_yticks(
            range(len(found)), [m.model for m in found] if column == 0 else [""] * len(found)
        )
        axes.set_title(part)
        axes.set_xlabel("median time (ms)")
    figure.savefig(path, dpi=120)
