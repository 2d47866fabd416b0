"""The tables of time and memory of modules and of whole models."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

from .flops import count_flops
from .implementations import PUBLISHED, Implementation
from .machine import shortest_time
from .measure import MIB, held_memory, measure
from .model_workload import ModelWorkload
from .module_workload import ModuleWorkload
from .report import Row, Table
from .settings import Setting, Step

PASSES = {False: "forward", True: "forward + backward"}


def module_table(
    name: str,
    steps: Sequence[Step],
    implementations: Sequence[Implementation],
    setting: Setting,
    repeats: int,
    roofline: Mapping[str, float],
) -> Table:
    """Measure all implementations at each step, forward and forward + backward."""
    rows: list[Row] = []
    for step, backward in product(steps, PASSES):
        work = {i.label: ModuleWorkload(i, step, setting, backward) for i in implementations}
        costs = measure(work, repeats, f"{step.name}, {PASSES[backward]}")
        published = costs.get(PUBLISHED, {}).get("median ms")
        for implementation in implementations:
            cost, run = costs[implementation.label], work[implementation.label].prepare()
            flops = None if backward else count_flops(run).total
            best = flops and shortest_time(roofline, flops, step, setting)
            comparable = implementation.is_as_published
            rows.append(
                {
                    "step": step.name,
                    "pass": PASSES[backward],
                    "implementation": implementation.label,
                    **cost,
                    "speed-up": published / cost["median ms"] if comparable else None,
                    "held MiB": held_memory(run) / MIB if backward else None,
                    "GFLOPs": flops and flops / 1e9,
                    "% of roofline": best and 100 * best / cost["median ms"],
                }
            )
    notes = (
        "speed-up: over the published algorithm; peak: memory beyond the inputs, results included; "
        "held: kept by the forward pass for the backward pass, inputs and parameters included",
        "GFLOPs: 1e9 multiply-adds of the forward pass; roofline: their time at the rate of a "
        "matrix product, or that of the input and output at the rate of a copy, if longer",
    )
    return Table(name, f"Modules: {name}", rows, notes)


def model_table(
    models: Mapping[str, ModelWorkload],
    parts: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    repeats: int,
) -> Table:
    """Measure parts of models at image sizes, in turns."""
    rows: list[Row] = []
    for part, size in product(parts, sizes):
        image = "{}x{}".format(*size)
        work = {label: replace(m, part=part, image_size=size) for label, m in models.items()}
        costs = measure(work, repeats, f"{part}, {image}")
        first = next(iter(costs.values()))["median ms"]
        for label, cost in costs.items():
            over = f"{cost['median ms'] / first - 1:+.1%}"
            rows.append({"part": part, "image": image, "model": label, **cost, "over first": over})
    notes = (
        "peak: memory beyond the model and its images; that of a training step includes gradients "
        "and the optimizer's state",
        "weights are random, images noise; no box suppresses another, so that all models work on "
        "as many boxes",
    )
    return Table("models", "Models", rows, notes)
