"""Time and memory of upsampler modules: what is measured, and the tables and plots of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from tqdm import tqdm

from .agreement import Agreement, check_agreement
from .flops import count_module_flops
from .implementations import PUBLISHED, Implementation
from .machine import Roofline
from .measure import held_memory, interleaved_times, peak_memory, summarize
from .report import Table
from .shapes import Step
from .workload import DTYPES, Setting, Workload

MIB = 2**20
PASSES = {False: "forward", True: "forward + backward"}


@dataclass(frozen=True)
class Measurement:
    """One implementation at one step, forward or with the backward pass.

    Args:
        implementation: its label.
        step: name of the step.
        channels, input_size, output_size: of the maps.
        backward: whether the backward pass is included.
        seconds: median, minimum and maximum.
        peak_bytes: beyond the inputs, the result included; None where it cannot be known.
        held_bytes: kept by the forward pass for the backward pass.
        flops: multiply-adds of the forward pass; None of both passes, or where not all are known.
        roofline: the share of the speed that arithmetic or memory traffic allows.
        speedup: over the published algorithm; of what computes the same alone.
    """

    implementation: str
    step: str
    channels: int
    input_size: tuple[int, int]
    output_size: tuple[int, int]
    backward: bool
    seconds: dict[str, float]
    peak_bytes: int | None
    held_bytes: int | None
    flops: float | None
    roofline: float | None
    speedup: float | None


def check_all(
    steps: Sequence[Step], implementations: Sequence[Implementation], setting: Setting
) -> list[Agreement]:
    """Compare the backends of LDA-AQU with the published algorithm, at every step."""
    reference = [i for i in implementations if i.reference]
    checked = [i for i in implementations if i.is_as_published]
    return [
        agreement
        for step in tqdm(steps if reference else (), desc="agreement", unit="step", leave=False)
        for agreement in check_agreement(reference[0], checked, step, setting)
    ]


def measure_steps(
    steps: Sequence[Step],
    implementations: Sequence[Implementation],
    setting: Setting,
    repeats: int,
    roofline: Roofline,
) -> list[Measurement]:
    """Measure all implementations at each step, forward and forward + backward."""
    return [
        measurement
        for step in steps
        for backward in PASSES
        for measurement in _measure(step, backward, implementations, setting, repeats, roofline)
    ]


def _measure(
    step: Step,
    backward: bool,
    implementations: Sequence[Implementation],
    setting: Setting,
    repeats: int,
    roofline: Roofline,
) -> list[Measurement]:
    description = f"{step.name}, {PASSES[backward]}"
    work = {i.label: Workload(i, step, setting, backward) for i in implementations}
    runs = {label: workload.prepare() for label, workload in work.items()}
    times = interleaved_times(runs, repeats, setting.device, description)
    seconds = {label: summarize(values) for label, values in times.items()}
    results = []
    for implementation in tqdm(implementations, desc=f"{description}, memory", leave=False):
        label = implementation.label
        median = seconds[label]["median"]
        flops = None if backward else _flops(work[label])
        speedup = share = None
        if implementation.is_as_published:
            speedup = seconds[PUBLISHED]["median"] / median
        if flops is not None:
            share = roofline.shortest_time(flops, _least_traffic(step, setting)) / median
        results.append(
            Measurement(
                implementation=label,
                step=step.name,
                channels=step.channels,
                input_size=step.input_size,
                output_size=step.output_size,
                backward=backward,
                seconds=seconds[label],
                peak_bytes=peak_memory(work[label], setting.device, torch.get_num_threads()),
                held_bytes=held_memory(runs[label]) if backward else None,
                flops=flops,
                roofline=share,
                speedup=speedup,
            )
        )
    return results


def _flops(workload: Workload) -> float | None:
    module = workload.build()
    count = count_module_flops(module, workload.inputs(module))
    return count.total if count.is_complete else None


def _least_traffic(step: Step, setting: Setting) -> int:
    """Bytes of the input, read once, and of the output, written once."""
    pixels = [height * width for height, width in (step.input_size, step.output_size)]
    return step.channels * sum(pixels) * DTYPES[setting.dtype].itemsize


def agreement_table(agreements: Sequence[Agreement]) -> Table:
    """How far each backend is from the published algorithm."""
    headers = ("implementation", "step", "dtype", "output error", "allowed")
    return Table(
        "Agreement with the published algorithm",
        (*headers, "largest gradient error", "allowed", "agrees"),
        [
            (
                a.label,
                a.step,
                a.dtype,
                f"{a.errors[0]:.1e}",
                f"{a.allowed[0]:.1e}",
                f"{a.errors[1]:.1e}",
                f"{a.allowed[1]:.1e}",
                "yes" if a.holds else "NO",
            )
            for a in agreements
        ],
        (
            "errors: |a - b| / |b|, where b is the published algorithm in float64",
            "allowed below float64: twice what the published algorithm in that type is off by, and "
            "no less than rounding of positions can do",
        ),
    )


def measurement_table(title: str, measurements: Sequence[Measurement]) -> Table:
    """All measurements, in the order given."""
    headers = (
        "step",
        "pass",
        "implementation",
        "median ms",
        "min ms",
        "max ms",
        "speed-up over published",
        "peak MiB",
        "held MiB",
        "GFLOPs",
        "share of roofline",
    )
    rows = [
        (
            m.step,
            PASSES[m.backward],
            m.implementation,
            *(1e3 * m.seconds[key] for key in ("median", "min", "max")),
            m.speedup,
            None if m.peak_bytes is None else m.peak_bytes / MIB,
            None if m.held_bytes is None else m.held_bytes / MIB,
            None if m.flops is None else m.flops / 1e9,
            None if m.roofline is None else f"{m.roofline:.1%}",
        )
        for m in measurements
    ]
    return Table(
        title,
        headers,
        rows,
        (
            "peak: memory beyond the inputs at its highest, the results included",
            "held: what the forward pass keeps for the backward pass, inputs and parameters "
            "included",
            "GFLOPs: 1e9 multiply-adds of the forward pass",
            "share of roofline: the time that the multiply-adds take at the measured rate of a "
            "matrix product, or reading the input and writing the output at that of a copy, "
            "whichever is longer, over the median; maps that fit into the cache can pass 100%",
        ),
    )


def plot(path: Path, section: str, measurements: Sequence[Measurement]) -> None:
    """Write a PNG: lines over "resolution" or "channels", or bars for the steps of a pyramid."""
    if section == "fpn":
        _plot_steps(path, measurements)
    else:
        _plot_sweep(path, measurements, section)


def _plot_steps(path: Path, measurements: Sequence[Measurement]) -> None:
    """Bars of time and peak memory at each step, forward and forward + backward."""
    steps = list(dict.fromkeys(m.step for m in measurements))
    labels = list(dict.fromkeys(m.implementation for m in measurements))
    figure = Figure(figsize=(4.5 * len(steps), 2.2 + 0.45 * len(labels)), layout="constrained")
    for row, (quantity, get) in enumerate(_QUANTITIES.items()):
        for column, step in enumerate(steps):
            axes = figure.add_subplot(2, len(steps), row * len(steps) + column + 1)
            for backward, name in PASSES.items():
                found = [m for m in measurements if m.step == step and m.backward == backward]
                places = [labels.index(m.implementation) + 0.2 * (2 * backward - 1) for m in found]
                axes.barh(places, [get(m) for m in found], 0.4, label=name)
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_yticks(range(len(labels)), labels if column == 0 else [""] * len(labels))
            axes.invert_yaxis()
            axes.set_xlabel(quantity)
            axes.grid(axis="x", alpha=0.3)
            if row == 0:
                axes.set_title(step)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)


def _plot_sweep(path: Path, measurements: Sequence[Measurement], over: str) -> None:
    """Lines of time and peak memory."""
    labels = list(dict.fromkeys(m.implementation for m in measurements))
    figure = Figure(figsize=(12, 9), layout="constrained")
    for row, (quantity, get) in enumerate(_QUANTITIES.items()):
        for backward, name in PASSES.items():
            axes = figure.add_subplot(2, 2, 2 * row + backward + 1)
            for number, label in enumerate(labels):
                found = [
                    m for m in measurements if m.implementation == label and m.backward == backward
                ]
                axes.plot(
                    [m.channels if over == "channels" else _pixels(m) for m in found],
                    [get(m) for m in found],
                    marker="osD^v"[number // 10 % 5],
                    label=label,
                )
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("channels" if over == "channels" else "pixels of the output")
            axes.set_ylabel(quantity)
            axes.set_title(name)
            axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=120)


def _pixels(measurement: Measurement) -> int:
    return measurement.output_size[0] * measurement.output_size[1]


_QUANTITIES = {
    "median time (ms)": lambda m: 1e3 * m.seconds["median"],
    # A log scale has no 0, which is what the peak of a small map may round to.
    "peak memory (MiB)": lambda m: torch.nan if not m.peak_bytes else m.peak_bytes / MIB,
}
