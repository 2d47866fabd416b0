"""Parameters, FLOPs, time, memory and accuracy of upsamplers, side by side."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from ..errors import InputError
from ..study.report import summary
from ..upsampler_arguments import upsampler_keys
from ..upsamplers import UPSAMPLER_REGISTRY
from .flops import count_flops
from .implementations import Implementation, parse_implementation
from .measure import measure
from .model_workload import ModelWorkload
from .module_workload import ModuleWorkload
from .published_figures import ADDED, PUBLISHED_FIGURES
from .report import Row, Table
from .settings import Step

AP_KEY = "bbox/AP"  # in metrics.json


def compared_upsamplers(names: Sequence[str] | None) -> list[Implementation]:
    """Those of ``names``, or the variants that papers report and all others that are registered."""
    names = names or dict.fromkeys([*PUBLISHED_FIGURES, *UPSAMPLER_REGISTRY])
    return [parse_implementation(name) for name in names]


def comparison_table(
    upsamplers: Sequence[Implementation],
    model: ModelWorkload,
    step: Step,
    measured_ap: Mapping[str, float],
    repeats: int,
) -> Table:
    """What each upsampler costs by itself at ``step``, and in a model.

    InputError where the model cannot be built with one of them, or does not use it.
    """
    works = {
        "": {u.label: ModuleWorkload(u, step, model.setting) for u in upsamplers},
        ", model": {u.label: with_upsampler(model, u) for u in upsamplers},
    }
    for workload in works[", model"].values():  # before anything is measured
        _check_use(workload)
    flops = {
        end: {label: count_flops(workload.prepare()) for label, workload in work.items()}
        for end, work in works.items()
    }
    costs = {end: measure(work, repeats, f"upsamplers{end}") for end, work in works.items()}
    rows: list[Row] = []
    for label, workload in works[""].items():
        parameters = sum(p.numel() for p in workload.build().parameters())
        published = PUBLISHED_FIGURES.get(label)
        row: Row = {"upsampler": label, "parameters": parameters}
        row["published"] = published and published.added
        for end in works:
            total = flops[end][label].total
            row[f"GFLOPs{end}"] = total and total / 1e9
            row[f"ms{end}"] = costs[end][label]["median ms"]
            row[f"peak MiB{end}"] = costs[end][label]["peak MiB"]
        row["box AP, cited"] = published and published.box_ap
        row["box AP, measured"] = measured_ap.get(label)
        rows.append(row)
    sources = dict.fromkeys(p.source for n, p in PUBLISHED_FIGURES.items() if n in works[""])
    notes = (
        "GFLOPs: 1e9 multiply-adds of a forward pass; ms: its median time; peak MiB: memory "
        "beyond inputs and weights",
        ADDED,
        "box AP, cited: Faster R-CNN R50, 12 epochs, not ours: " + "; ".join(sources),
        *(
            f"{label}{end}: FLOPs unknown of {', '.join(count.uncounted)}"
            for end, counts in flops.items()
            for label, count in counts.items()
            if count.uncounted
        ),
    )
    title = f"Upsamplers: {step.name}, {step.channels} channels; {Path(model.config_file).stem}"
    return Table("upsamplers", title, rows, notes)


def with_upsampler(model: ModelWorkload, upsampler: Implementation) -> ModelWorkload:
    """The model with the upsampler in its pyramid."""
    opts = upsampler_keys(["MODEL.FPN.UPSAMPLER"], upsampler.upsampler, upsampler.options)
    return replace(model, opts=(*model.opts, *opts))


def _check_use(workload: ModelWorkload) -> None:
    """Raise InputError where the model's pyramid does not use the upsampler."""
    model, backbone = workload.config().MODEL, workload.build().backbone
    cls = UPSAMPLER_REGISTRY.get(model.FPN.UPSAMPLER)
    if not any(type(module) is cls for module in backbone.modules()):
        raise InputError(
            f"MODEL.BACKBONE.NAME {model.BACKBONE.NAME!r} does not use MODEL.FPN.UPSAMPLER; give "
            "build_resnet_lda_aqu_fpn_backbone or build_retinanet_resnet_lda_aqu_fpn_backbone"
        )


def read_results(texts: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """The box AP, in percent, by name: of ``NAME=path/to/metrics.json`` the last in the file.

    A path alone is of the results of a study, see :mod:`lda_aqu.study`: of each of ``labels`` in it
    the mean.

    InputError where it is not of this form, not one of ``labels``, or the file has no box AP.
    """
    results = {}
    for text in texts:
        if Path(text).is_file():
            means = {label: values.get("box AP") for label, values in summary(Path(text)).items()}
            results |= {label: means[label] for label in labels if means.get(label) is not None}
            continue
        # Options of an upsampler have equals signs too.
        name = next((label for label in labels if text.startswith(f"{label}=")), None)
        if name is None:
            raise InputError(
                f"--results {text!r}: give results of a study, or NAME=path/to/metrics.json with "
                f"one of the compared names: {', '.join(labels)}"
            )
        try:
            lines = Path(text[len(name) + 1 :]).read_text().splitlines()
            results[name] = [r[AP_KEY] for r in map(json.loads, lines) if AP_KEY in r][-1]
        except (OSError, ValueError) as error:
            raise InputError(f"--results {text!r}: cannot be read: {error}") from error
        except IndexError:
            raise InputError(f"--results {text!r}: no {AP_KEY!r} in the file") from None
    return results


def plot_comparison(path: Path, rows: Sequence[Row]) -> None:
    """Parameters against box AP, cited ones hollow; areas are the FLOPs of the modules."""
    most = max(row["GFLOPs"] or 0 for row in rows) or 1
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    for column, face in (("box AP, cited", "none"), ("box AP, measured", "tab:orange")):
        found = [row for row in rows if row[column] is not None]
        areas = [20 + 2000 * (row["GFLOPs"] or 0) / most for row in found]
        points = [(row["parameters"], row[column]) for row in found]
        if found:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, areas, face, edgecolors="tab:blue", alpha=0.8, label=column)
        for row, point, area in zip(found, points, areas, strict=True):
            label, right = row["upsampler"], (area**0.5 / 2 + 3, -3)
            name = PUBLISHED_FIGURES[label].name if label in PUBLISHED_FIGURES else label
            axes.annotate(name, point, right, textcoords="offset points", fontsize=8)
    axes.set_xscale("symlog", linthresh=1000)
    ticks = {0: "0", 10**3: "1 K", 10**4: "10 K", 10**5: "100 K", 10**6: "1 M", 10**7: "10 M"}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xlim(-200, 10 * max(1000, *(row["parameters"] for row in rows)))
    axes.margins(y=0.15)
    axes.set(xlabel="parameters of the module", ylabel="box AP (%)")
    axes.set_title("Box AP of a detector with each upsampler; area: FLOPs of the module")
    axes.grid(alpha=0.3)
    if axes.collections:
        axes.legend(loc="upper right", markerscale=0.4)
    figure.savefig(path, dpi=120)
