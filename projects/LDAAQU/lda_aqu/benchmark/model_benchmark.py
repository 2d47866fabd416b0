"""Time and memory of whole models, and of a model's twin that differs in the upsampler alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
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
        image: height and width, HxW.
        part: see :class:`ModelWorkload`.
        seconds: median, minimum and maximum.
        peak_bytes: beyond the model and its images; None where it cannot be known.
        relative: median time over that of the first model.
    """

    model: str
    image: str
    part: str
    seconds: dict[str, float]
    peak_bytes: int | None
    relative: float


def measure_models(
    models: dict[str, ModelWorkload],
    parts: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    repeats: int,
) -> list[ModelMeasurement]:
    """Measure parts of models at image sizes, in turns; ratios are to the first model."""
    results = []
    for part, size in product(parts, sizes):
        image = "{}x{}".format(*size)
        work = {
            label: replace(model, part=part, image_size=size) for label, model in models.items()
        }
        runs = {label: workload.prepare() for label, workload in work.items()}
        device = next(iter(models.values())).setting.device
        times = interleaved_times(runs, repeats, device, f"{part}, {image}")
        seconds = {label: summarize(values) for label, values in times.items()}
        first = next(iter(seconds.values()))["median"]
        results += [
            ModelMeasurement(
                label,
                image,
                part,
                seconds[label],
                peak_memory(workload, device, torch.get_num_threads()),
                seconds[label]["median"] / first,
            )
            for label, workload in tqdm(
                work.items(), desc=f"{part}, {image}, memory", unit="model", leave=False
            )
        ]
    return results


def model_table(title: str, measurements: Sequence[ModelMeasurement]) -> Table:
    """All measurements, in the order given."""
    return Table(
        title,
        ("part", "image", "model", "median ms", "min ms", "max ms", "relative", "peak MiB"),
        [
            (
                m.part,
                m.image,
                m.model,
                *(1e3 * m.seconds[key] for key in ("median", "min", "max")),
                f"{m.relative - 1:+.1%}",
                None if m.peak_bytes is None else m.peak_bytes / MIB,
            )
            for m in measurements
        ],
        (
            "relative: the median beside that of the first model of the part and size",
            "peak: memory beyond the model and its images at its highest; that of a training step "
            "includes gradients and the optimizer's state",
            "weights are random and images are noise; no box suppresses another, so that all "
            "models work on as many boxes",
        ),
    )


def plot_models(path: Path, measurements: Sequence[ModelMeasurement]) -> None:
    """Bars of the time of each part, by image size."""
    parts = list(dict.fromkeys(m.part for m in measurements))
    rows = list(dict.fromkeys((m.image, m.model) for m in measurements))
    size = (4.5 * len(parts) + 2, 1.5 + 0.6 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    for panel, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        found = [m for m in measurements if m.part == part]
        colors = [f"C{[m.model for m in found].index(m.model)}" for m in found]
        bars = panel.barh(range(len(found)), [m.seconds["median"] for m in found], color=colors)
        panel.bar_label(bars, [f"{m.relative - 1:+.1%}" for m in found], padding=3)
        panel.margins(x=0.3)
        panel.invert_yaxis()
        names = [f"{m.model}\n{m.image}" if part == parts[0] else "" for m in found]
        panel.set_yticks(range(len(found)), names)
        panel.set_title(part)
        panel.set_xlabel("median time (s)")
    figure.savefig(path, dpi=120)
