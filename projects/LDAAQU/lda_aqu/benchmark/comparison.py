"""Parameters, FLOPs, time, memory and accuracy of upsamplers, side by side."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from detectron2.config import CfgNode
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from ..errors import InputError
from ..upsamplers import UPSAMPLER_REGISTRY
from .flops import FlopCount, count_model_flops, count_module_flops
from .implementations import Implementation, parse_implementation
from .measure import interleaved_times, peak_memory, summarize
from .model_workload import ModelWorkload, noise_images
from .published_figures import (
    ADDED_TO_FASTER_RCNN,
    ADDED_TO_PANOPTIC_FPN,
    FREQFUSION_TABLE,
    LDA_AQU_PAPER,
    PUBLISHED_PARAMETERS,
    PUBLISHED_RESULTS,
)
from .report import Table
from .shapes import Step
from .workload import Workload

MIB = 2**20
BASELINE = "Nearest"
AP_KEY = "bbox/AP"  # in metrics.json

W = TypeVar("W", Workload, ModelWorkload)


@dataclass(frozen=True)
class Cost:
    """What one module or model costs.

    Args:
        parameters: those that are trained.
        flops: of a forward pass.
        seconds: median, minimum and maximum of a forward pass.
        peak_bytes: of a forward pass, beyond what was there before; None where it cannot be known.
    """

    parameters: int
    flops: FlopCount
    seconds: dict[str, float]
    peak_bytes: int | None


@dataclass(frozen=True)
class Comparison:
    """One upsampler: by itself, in a model, and in that model with the published topology.

    Args:
        upsampler: its label.
        module: of the module.
        model: of the model.
        published_topology_parameters: of the model with ``MODEL.FPN.TOPOLOGY published``.
    """

    upsampler: str
    module: Cost
    model: Cost
    published_topology_parameters: int


def compared_upsamplers(names: Sequence[str] | None) -> list[Implementation]:
    """Those of ``names``, or all that are registered and the variants that papers report.

    Raises:
        InputError: a name that is not known.
    """
    if names is None:
        variants = [result.upsampler for result in PUBLISHED_RESULTS]
        known = [v for v in variants if v.partition(":")[0] in UPSAMPLER_REGISTRY]
        names = [*known, *(name for name in UPSAMPLER_REGISTRY if name not in known)]
    return [parse_implementation(name) for name in names]


def compare(
    implementations: Sequence[Implementation],
    model: ModelWorkload,
    step: Step,
    repeats: int,
) -> list[Comparison]:
    """Measure each upsampler at ``step``, and as ``MODEL.FPN.UPSAMPLER`` of a model.

    Raises:
        InputError: the model cannot be built with one of them, or does not use it.
    """
    modules = {i.label: Workload(i, step, model.setting) for i in implementations}
    models = {
        i.label: replace(model, opts=(*model.opts, *upsampler_keys(i))) for i in implementations
    }
    model_costs = _costs(models, _count_model, repeats, "models")
    module_costs = _costs(modules, _count_module, repeats, "modules")
    return [
        Comparison(
            label,
            module_costs[label],
            model_costs[label],
            trained_parameters(
                replace(model, opts=(*model.opts, "MODEL.FPN.TOPOLOGY", "published")).build()
            ),
        )
        for label, model in tqdm(models.items(), desc="published topology", leave=False)
    ]


def upsampler_keys(implementation: Implementation) -> tuple[str, ...]:
    """The config keys and values that make it the upsampler of the pyramid."""
    node = UPSAMPLER_REGISTRY.get(implementation.upsampler).config_node
    keys = ["MODEL.FPN.UPSAMPLER", implementation.upsampler]
    for option, value in implementation.options.items():
        keys += [f"MODEL.{node}.{option.upper()}", value]
    return tuple(keys)


def trained_parameters(module: nn.Module) -> int:
    """Number of parameters that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _count_module(workload: Workload) -> tuple[int, FlopCount]:
    """Parameters and FLOPs."""
    module = workload.build()
    return trained_parameters(module), count_module_flops(module, workload.inputs(module))


def _count_model(workload: ModelWorkload) -> tuple[int, FlopCount]:
    """Parameters and FLOPs; InputError where the pyramid does not use the upsampler."""
    model, cfg = workload.build(), workload.config()
    cls = UPSAMPLER_REGISTRY.get(cfg.MODEL.FPN.UPSAMPLER)
    if not any(type(module) is cls for module in model.backbone.modules()):
        raise InputError(
            f"config {workload.config_file!r}: the backbone {cfg.MODEL.BACKBONE.NAME!r} "
            "does not use MODEL.FPN.UPSAMPLER; use build_resnet_lda_aqu_fpn_backbone or "
            "build_retinanet_resnet_lda_aqu_fpn_backbone"
        )
    images = noise_images(1, workload.image_size)
    return trained_parameters(model), count_model_flops(model, images)


def _costs(
    work: Mapping[str, W],
    count: Callable[[W], tuple[int, FlopCount]],
    repeats: int,
    description: str,
) -> dict[str, Cost]:
    """Count and measure; the runs of all are timed in turns."""
    device = next(iter(work.values())).setting.device
    items = tqdm(work.items(), desc=f"FLOPs of {description}", leave=False)
    counts = {label: count(workload) for label, workload in items}
    runs = {label: workload.prepare() for label, workload in work.items()}
    times = interleaved_times(runs, repeats, device, f"time of {description}")
    items = tqdm(work.items(), desc=f"memory of {description}", leave=False)
    return {
        label: Cost(
            *counts[label],
            seconds=summarize(times[label]),
            peak_bytes=peak_memory(workload, device, torch.get_num_threads()),
        )
        for label, workload in items
    }


def read_results(texts: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """``NAME=path/to/metrics.json``, each: the last box AP in the file, in percent, by name.

    Raises:
        InputError: not of this form, not one of ``labels``, or a file without a box AP.
    """
    results = {}
    for text in texts:
        # Options of an upsampler have equals signs too.
        name = next((label for label in labels if text.startswith(f"{label}=")), None)
        if name is None:
            raise InputError(
                f"--results {text!r}: give NAME=path/to/metrics.json with one of the compared "
                f"names: {', '.join(labels)}"
            )
        path = text[len(name) + 1 :]
        try:
            records = [json.loads(line) for line in Path(path).read_text().splitlines()]
        except (OSError, ValueError) as error:
            raise InputError(f"--results {text!r}: {path!r} cannot be read: {error}") from error
        found = [record[AP_KEY] for record in records if AP_KEY in record]
        if not found:
            raise InputError(f"--results {text!r}: {path!r} has no {AP_KEY!r}")
        results[name] = found[-1]
    return results


def comparison_tables(
    module: str,
    model: str,
    comparisons: Sequence[Comparison],
    measured_ap: Mapping[str, float],
) -> tuple[Table, Table]:
    """What the upsamplers cost by themselves, and in a model: one row for each in both tables.

    Args:
        module: title of the first.
        model: title of the second.
        comparisons: the upsamplers.
        measured_ap: of those with which a model was trained.
    """
    cited = {result.upsampler: result for result in PUBLISHED_RESULTS}
    sources = dict.fromkeys(cited[c.upsampler].source for c in comparisons if c.upsampler in cited)
    columns = ("upsampler", "parameters", "GFLOPs", "ms", "peak MiB")
    return (
        Table(
            module,
            columns,
            [(c.upsampler, *_cells(c.module)) for c in comparisons],
            (
                "parameters: those that are trained; GFLOPs: 1e9 multiply-adds of a forward pass; "
                "ms: its median time; peak MiB: memory beyond inputs and weights",
                *_uncounted({c.upsampler: c.module for c in comparisons}),
            ),
        ),
        Table(
            model,
            (*columns, "box AP, cited", "box AP, measured"),
            [
                (
                    c.upsampler,
                    *_cells(c.model),
                    cited[c.upsampler].box_ap if c.upsampler in cited else None,
                    measured_ap.get(c.upsampler),
                )
                for c in comparisons
            ],
            (
                f"box AP, cited: of Faster R-CNN R50, 12 epochs, not ours: {'; '.join(sources)}",
                *_uncounted({c.upsampler: c.model for c in comparisons}),
            ),
        ),
    )


def _cells(cost: Cost) -> tuple[int | float | str | None, ...]:
    gflops = cost.flops.total / 1e9
    return (
        cost.parameters,
        gflops if cost.flops.is_complete else f"more than {gflops:.3g}",
        1e3 * cost.seconds["median"],
        None if cost.peak_bytes is None else cost.peak_bytes / MIB,
    )


def _uncounted(costs: Mapping[str, Cost]) -> list[str]:
    """A note for each upsampler some of whose operators' FLOPs are not known."""
    return [
        f"{label}: FLOPs without {', '.join(cost.flops.uncounted)}"
        for label, cost in costs.items()
        if not cost.flops.is_complete
    ]


def is_published_model(cfg: CfgNode) -> bool:
    """Whether it is, but for upsampler and topology, the Faster R-CNN R50 of the papers."""
    model = cfg.MODEL
    return (
        model.META_ARCHITECTURE == "GeneralizedRCNN"
        and not model.MASK_ON
        and model.RESNETS.DEPTH == 50
        and model.FPN.OUT_CHANNELS == 256
        and model.ROI_HEADS.NUM_CLASSES == 80
    )


def published_table(comparisons: Sequence[Comparison]) -> Table | None:
    """Parameters of Faster R-CNN R50 beside those published, or None without the baseline's."""
    by_label = {c.upsampler: c for c in comparisons}
    if BASELINE not in by_label:
        return None
    baseline = by_label[BASELINE]
    rows = [
        (
            BASELINE,
            PUBLISHED_PARAMETERS,
            "Faster R-CNN",
            _shown(baseline.published_topology_parameters),
            _shown(baseline.model.parameters),
        )
    ]
    for added, model in (
        (ADDED_TO_FASTER_RCNN, "Faster R-CNN"),
        (ADDED_TO_PANOPTIC_FPN, "Panoptic FPN"),
    ):
        for label, published in added.items():
            if label in by_label:
                c = by_label[label]
                here = (
                    c.published_topology_parameters - baseline.published_topology_parameters,
                    c.model.parameters - baseline.model.parameters,
                )
                rows.append((f"{label} - {BASELINE}", published, model, *map(_shown, here)))
    return Table(
        "Parameters beside those published",
        ("model", "published", "of", "here, published topology", "here, the config's topology"),
        rows,
        (
            f"published of Faster R-CNN R50: {LDA_AQU_PAPER}; compare with the published topology, "
            "which has a P6 of two convolutions, 5.3 M parameters, and four upsamplers",
            f"published of Panoptic FPN R50: {FREQFUSION_TABLE}; compare with Detectron2's "
            "topology, whose P6 is max-pooled and which has three upsamplers",
            "counted are the parameters that are trained; MMDetection also counts the scales and "
            "shifts of the frozen normalisation after the frozen stages, 0.05 M, which are no "
            "parameters in Detectron2",
            "A2U's published figure is that of the weights of its convolutions; biases and "
            "normalisation are 3.2 K more",
        ),
    )


def _shown(parameters: int) -> str:
    """A number of parameters in the units in which papers give it."""
    return f"{parameters / 1e6:.3f} M" if parameters >= 1e5 else f"{parameters / 1e3:.1f} K"


def plot_comparison(
    path: Path, comparisons: Sequence[Comparison], measured_ap: Mapping[str, float]
) -> None:
    """Parameters against box AP; the area of a point is the FLOPs of the module.

    Points with a cited AP are hollow, those with a measured one are filled.
    """
    cited = {result.upsampler: result.box_ap for result in PUBLISHED_RESULTS}
    names = {result.upsampler: result.name for result in PUBLISHED_RESULTS}
    most = max(c.module.flops.total for c in comparisons)
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    for aps, face, kind in (
        (cited, "none", "AP as published (cited)"),
        (measured_ap, "tab:orange", "AP measured here"),
    ):
        found = [c for c in comparisons if c.upsampler in aps]
        if not found:
            continue
        areas = [20 + 2000 * c.module.flops.total / most for c in found]
        axes.scatter(
            [c.module.parameters for c in found],
            [aps[c.upsampler] for c in found],
            areas,
            facecolor=face,
            edgecolor="tab:blue" if face == "none" else face,
            alpha=0.8,
            label=kind,
        )
        for c, area in zip(found, areas, strict=True):
            axes.annotate(
                names.get(c.upsampler, c.upsampler),
                (c.module.parameters, aps[c.upsampler]),
                xytext=(area**0.5 / 2 + 3, 0),
                textcoords="offset points",
                verticalalignment="center",
                fontsize=8,
            )
    ticks = {0: "0", 10**3: "1 K", 10**4: "10 K", 10**5: "100 K", 10**6: "1 M", 10**7: "10 M"}
    axes.set_xscale("symlog", linthresh=1000)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xlim(-200, 10 * max(1000, *(c.module.parameters for c in comparisons)))
    axes.margins(y=0.15)
    axes.set_xlabel("parameters of the module")
    axes.set_ylabel("box AP (%)")
    axes.set_title("Box AP of a detector with each upsampler; area: FLOPs of the module")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right", markerscale=0.4)
    figure.savefig(path, dpi=120)
