"""Pictures of what :mod:`.sampling` recorded: sampled points, offset fields, maps.

One row for each upsampler, in the order in which they ran. A map's pixel is drawn over the image
pixels it stands for, stride x stride of them; what is said to be at it, at their middle.
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from .sampling import Recording, UpsamplerRun

PANEL = 3.0  # inches
WEIGHT_COLORS = "plasma"
GROUP_MARKERS = "oDs^vPX*"
MARK, WINDOW, OUTSIDE = "red", "deepskyblue", "0.4"
LABEL = {"color": "white", "fontsize": 8, "bbox": {"facecolor": MARK, "edgecolor": MARK, "pad": 1}}


def draw_points(recording: Recording, pixels: Sequence[tuple[int, int]]) -> Figure:
    """Draw the points that each upsampler samples for the output pixels at some image pixels.

    The first column is the image with what the others show of it; they are the output pixel
    (red), the regular window it starts from (crosses), and the points its offsets lead to, in
    the colour of their weight and marked by group. A group's weights are the mean over the
    attention heads of its channels. What lies outside the image is grey.

    Args:
        recording: with at least one upsampler that chooses points.
        pixels: (x, y) of the image.
    """
    runs = recording.sampled
    figure, axes = _panels(runs, 1 + len(pixels), PANEL)
    largest = max(
        float(_group_weights(run)[..., i, j].max())
        for run in runs
        for i, j in (_output_pixel(recording, run, pixel) for pixel in pixels)
    )
    colors = ScalarMappable(Normalize(0, largest), WEIGHT_COLORS)
    for run, (overview, *closeups) in zip(runs, axes, strict=True):
        _show_image(overview, recording)
        for number, (pixel, closeup) in enumerate(zip(pixels, closeups, strict=True), 1):
            _show_image(closeup, recording)
            x, y, side = _draw_sampled(closeup, recording, run, pixel, colors)
            closeup.set_xlim(x, x + side)
            closeup.set_ylim(y + side, y)
            overview.add_patch(Rectangle((x, y), side, side, fill=False, color=MARK, ls=":"))
            overview.plot(*pixel, "x", color=MARK)
            overview.annotate(str(number), pixel, (6, 6), textcoords="offset points", **LABEL)
    titles = (f"{number}: x {x}, y {y}" for number, (x, y) in enumerate(pixels, 1))
    _set_titles(axes, "image", *titles)
    groups = max(run.sampling.positions.shape[1] for run in runs)
    handles = [
        _marker("s", "none", MARK, "output pixel"),
        _marker("+", WINDOW, WINDOW, "its window"),
    ]
    handles += [
        _marker(GROUP_MARKERS[group % len(GROUP_MARKERS)], "0.6", "k", f"sampled, group {group}")
        for group in range(groups)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    figure.colorbar(colors, ax=axes, label="attention weight", shrink=min(0.8, 2 / len(runs)))
    return figure


def draw_offsets(recording: Recording) -> Figure:
    """Draw the offset field of each upsampler that chooses points; there must be one.

    Its mean over groups and points, as a colour (hue: direction; strength: length over the row's
    largest); and the mean of their lengths, which is not 0 where they go apart.
    """
    runs = recording.sampled
    figure, axes = _panels(runs, 3, _panel_height(recording))
    for run, (overview, directions, lengths) in zip(runs, axes, strict=True):
        offsets = run.sampling.offsets[0]
        mean = offsets.mean((0, 1)).numpy()
        distance = offsets.norm(dim=2)
        _show_image(overview, recording)
        _show_map(directions, recording, _direction_colors(mean))
        _draw_wheel(directions.inset_axes((0.78, 0.02, 0.2, 0.2)))
        shown = _show_map(lengths, recording, distance.mean((0, 1)).numpy(), cmap="magma", vmin=0)
        figure.colorbar(shown, ax=lengths, shrink=0.8)
        lengths.set_xlabel(f"mean {distance.mean():.2f}, largest {distance.max():.2f}")
        directions.set_xlabel(f"full colour = {np.hypot(*mean).max():.2f}")
    _set_titles(axes, "image", "mean offset", "mean length of the offsets")
    figure.supxlabel("lengths in output pixels", fontsize=10)
    return figure


def draw_maps(recording: Recording) -> Figure:
    """Draw the map before and after each upsampler: three principal components as RGB."""
    figure, axes = _panels(recording.runs, 3, _panel_height(recording))
    for run, (overview, *panels) in zip(recording.runs, axes, strict=True):
        _show_image(overview, recording)
        colors = principal_colors(run.before, run.after)
        for panel, values in zip(panels, colors, strict=True):
            _show_map(panel, recording, values)
            panel.set_xlabel(f"{values.shape[1]} x {values.shape[0]}")
    _set_titles(axes, "image", "before", "after")
    return figure


def principal_colors(before: Tensor, after: Tensor) -> list[np.ndarray]:
    """The first three principal components of ``after`` as RGB in [0, 1], of both maps alike.

    The scale of each is from the 1st to the 99th percentile of ``after``.

    Args:
        before: (C, H, W).
        after: (C, H', W'). With C < 3 the components that there are not are 0.

    Returns:
        (H, W, 3) and (H', W', 3).
    """
    vectors = after.flatten(1).double()
    mean = vectors.mean(1, keepdim=True)
    # Eigenvalues are in ascending order.
    basis = torch.linalg.eigh(
        torch.cov(vectors, correction=0).view(len(mean), -1)
    ).eigenvectors.flip(1)[:, :3]
    low, high = np.percentile((basis.T @ (vectors - mean)).numpy(), (1, 99), axis=1)
    colors = []
    for x in (before, after):
        components = (basis.T @ (x.flatten(1).double() - mean)).numpy().T
        scaled = ((components - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
        rgb = np.pad(scaled, ((0, 0), (0, 3 - scaled.shape[1])))
        colors.append(rgb.reshape(*x.shape[1:], 3))
    return colors


def _panel_height(recording: Recording) -> float:
    """Inches that the image and the label below it take in a panel ``PANEL`` inches wide."""
    height, width = recording.image.shape[:2]
    return PANEL * height / width + 0.2


def _panels(runs: Sequence[UpsamplerRun], columns: int, height: float) -> tuple[Figure, np.ndarray]:
    """A figure and its axes, (runs, columns), each row with the name of its upsampler."""
    figure = Figure(figsize=(PANEL * columns + 1, height * len(runs) + 0.5), layout="constrained")
    axes = figure.subplots(len(runs), columns, squeeze=False)
    for run, row in zip(runs, axes, strict=True):
        scale = run.after.shape[1] / run.before.shape[1]
        row[0].set_ylabel(f"{run.name}\nstride {run.stride * scale:g} to {run.stride:g}")
        for panel in row:
            panel.set_xticks([])
            panel.set_yticks([])
            panel.set_facecolor(OUTSIDE)
    return figure, axes


def _set_titles(axes: np.ndarray, *titles: str) -> None:
    """Title the columns of panels, (runs, columns)."""
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title)


def _show_image(axes: Axes, recording: Recording) -> None:
    """Show the image; axes are in its pixels."""
    height, width = recording.image.shape[:2]
    axes.imshow(recording.image, extent=(0, width, height, 0))
    axes.autoscale(False)


def _show_map(axes: Axes, recording: Recording, values: np.ndarray, **options) -> ScalarMappable:
    """Show a map, (H, W) or (H, W, 3), without what lies in the padding of the image."""
    height, width = recording.extent
    shown = axes.imshow(values, extent=(0, width, height, 0), interpolation="nearest", **options)
    axes.set_xlim(0, recording.image.shape[1])
    axes.set_ylim(recording.image.shape[0], 0)
    return shown


def _cell_size(recording: Recording, size: Sequence[int]) -> np.ndarray:
    """Image pixels, (y, x), that a pixel of a map of that size stands for."""
    return np.array(recording.extent) / np.array(size)


def _output_pixel(recording: Recording, run: UpsamplerRun, pixel: tuple[int, int]) -> np.ndarray:
    """The output pixel (i, j) that stands for an image pixel (x, y)."""
    middle = np.array(pixel[::-1]) + 0.5
    return (middle / _cell_size(recording, run.after.shape[1:])).astype(int)


def _group_weights(run: UpsamplerRun) -> Tensor:
    """(g, k_u², H', W'): the mean weight of each group's channels."""
    groups, weights = run.sampling.positions.shape[1], run.sampling.weights[0]
    shares = weights.repeat_interleave(groups, dim=0)  # heads * g slices of the channels
    return shares.unflatten(0, (groups, len(weights))).mean(1)


def _draw_sampled(
    axes: Axes,
    recording: Recording,
    run: UpsamplerRun,
    pixel: tuple[int, int],
    colors: ScalarMappable,
) -> tuple[float, float, float]:
    """Draw one output pixel and its points; the square (x, y, side) that holds them."""
    i, j = _output_pixel(recording, run, pixel)
    output_cell = _cell_size(recording, run.after.shape[1:])
    input_cell = _cell_size(recording, run.before.shape[1:])
    corner = np.array((i, j)) * output_cell
    axes.add_patch(Rectangle(corner[::-1], *output_cell[::-1], fill=False, color=MARK, lw=2))

    input_size, output_size = (np.array(m.shape[1:]) for m in (run.before, run.after))
    to_input = (input_size - 1) / np.maximum(output_size - 1, 1)
    offsets, positions = (
        t[0, ..., i, j].numpy() for t in (run.sampling.offsets, run.sampling.positions)
    )
    sampled = (positions + 0.5) * input_cell
    regular = (positions - offsets * to_input + 0.5) * input_cell
    weights = _group_weights(run)[..., i, j].numpy()
    for group, (starts, ends) in enumerate(zip(regular, sampled, strict=True)):
        for start, end in zip(starts, ends, strict=True):
            axes.plot(*np.stack((start, end), 1)[::-1], color=WINDOW, lw=0.8)
        axes.scatter(*starts.T[::-1], s=30, c=WINDOW, marker="+", linewidths=1.5)
        axes.scatter(
            *ends.T[::-1],
            s=45,
            c=colors.to_rgba(weights[group]),
            marker=GROUP_MARKERS[group % len(GROUP_MARKERS)],
            edgecolors="white",
            linewidths=0.8,
            zorder=3,
        )
    middle = corner + output_cell / 2
    reach = max(abs(points - middle).max() for points in (sampled, regular)) + output_cell.max()
    return *(middle[::-1] - reach), 2 * reach


def _marker(marker: str, face: str, edge: str, label: str) -> Line2D:
    """An entry of a legend."""
    return Line2D(
        [], [], marker=marker, markerfacecolor=face, markeredgecolor=edge, ls="none", label=label
    )


def _direction_colors(vectors: np.ndarray) -> np.ndarray:
    """(2, H, W), (dy, dx), to RGB (H, W, 3): hue of the direction, white where there is none."""
    length = np.hypot(*vectors)
    hue = np.arctan2(*vectors) / (2 * np.pi) % 1
    strength = length / max(length.max(), 1e-12)
    return hsv_to_rgb(np.stack((hue, strength, np.ones_like(hue)), axis=2))


def _draw_wheel(axes: Axes) -> None:
    """The legend of :func:`_direction_colors`: the colour of each direction from the middle."""
    line = np.linspace(-1, 1, 101)
    vectors = np.stack(np.meshgrid(line, line, indexing="ij"))
    vectors[:, np.hypot(*vectors) > 1] = 0
    axes.imshow(_direction_colors(vectors))
    axes.set_xticks([])
    axes.set_yticks([])
