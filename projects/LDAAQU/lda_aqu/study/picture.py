"""The picture of studies: every paired difference, the means and their intervals."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .statistics import Arm

COLUMNS = 3


def draw(path: Path, studies: Sequence[tuple[str, Sequence[Arm]]]) -> None:
    """Draw a panel for each metric of each study, (title, arms), that has differences."""
    panels = [
        (f"{title}\n{metric}", list(compared))
        for title, arms in studies
        for metric, compared in groupby((a for a in arms if a.differences), lambda a: a.metric)
    ]
    columns, most = min(COLUMNS, len(panels)), max(len(arms) for _, arms in panels)
    rows = -(-len(panels) // columns)
    size = (1 + 4.5 * columns, rows * (1.4 + 0.4 * most))
    figure = Figure(figsize=size, layout="constrained")
    for number, (title, arms) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, number)
        axes.axvline(0, color="grey", linewidth=1)
        for y, arm in enumerate(arms):
            spread = y + np.linspace(-0.15, 0.15, len(arm.differences))
            axes.scatter(arm.differences, spread, 12, "tab:blue", alpha=0.5, linewidths=0)
            axes.plot(arm.difference, y, "D", color="tab:orange", markersize=6)
            if arm.interval:
                axes.hlines(y, *arm.interval, color="tab:orange", linewidth=2)
        axes.set_yticks(range(len(arms)), [arm.upsampler for arm in arms], fontsize=8)
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.set_xlabel("difference to the baseline, points", fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.set_title(title, fontsize=8)
    figure.savefig(path, dpi=130)
