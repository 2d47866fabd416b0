"""The picture of studies: every paired difference, the means and their intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .statistics import Arm

COLUMNS = 3


def draw(path: Path, studies: Mapping[str, Sequence[Arm]]) -> None:
    """Draw a panel for each metric of each study, by its title, that has differences."""
    panels: dict[str, list[Arm]] = {}
    for title, arms in studies.items():
        for arm in arms:
            if arm.differences:
                panels.setdefault(f"{title}\n{arm.metric}", []).append(arm)
    columns, most = min(COLUMNS, len(panels)), max(map(len, panels.values()))
    rows = -(-len(panels) // columns)
    size = (1 + 4.5 * columns, rows * (1.4 + 0.4 * most))
    figure = Figure(figsize=size, layout="constrained")
    for number, (title, arms) in enumerate(panels.items(), 1):
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
