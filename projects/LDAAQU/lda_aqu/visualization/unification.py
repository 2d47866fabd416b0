"""The figure of docs/unification.md: known upsamplers as local attention."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..ops.special_cases import attend, bilinear, bilinear_over_pixels, carafe, nearest

INPUT_SIZE, SCALE = 8, 4
OUTPUT_PIXELS = {(10, 13): "tab:orange", (22, 24): "tab:cyan"}  # (i, j): their colour
LARGEST_DOT = 260  # area of a weight of 1, in points²


def draw_unification() -> Figure:
    """Draw each upsampler's positions and weights for two output pixels, and its output.

    The map is one channel of 8 x 8 pixels with a curved edge; everything is read, weighed and
    upsampled by :func:`~lda_aqu.ops.local_deformable_attention`.
    """
    x = _edge_image()
    size, output_size = (INPUT_SIZE,) * 2, (SCALE * INPUT_SIZE,) * 2
    cases = {
        "nearest\none point, on a pixel": nearest(size, output_size),
        "bilinear\none point, between pixels": bilinear(size, output_size, False),
        "bilinear\n3 x 3 pixels, bilinear weights": bilinear_over_pixels(size, output_size, False),
        "CARAFE\n5 x 5 pixels, weights by content": carafe(size, _kernel_logits(x, output_size)),
    }
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    axes = figure.subplots(2, len(cases))
    for column, (name, (positions, weights)) in zip(axes.T, cases.items(), strict=True):
        column[0].set_title(name, fontsize=11)
        _draw_attention(column[0], x, positions, weights)
        _show(column[1], attend(x, positions, weights))
    axes[0, 0].set_ylabel("input; what output pixels (x)\nread, dot area = weight", fontsize=11)
    axes[1, 0].set_ylabel(f"output, x{SCALE}", fontsize=11)
    return figure


def _edge_image() -> Tensor:
    """(1, 1, 8, 8), float64: a disc, each pixel the mean of what it covers."""
    fine = 16
    y, x = torch.meshgrid(*[torch.arange(INPUT_SIZE * fine) / fine] * 2, indexing="ij")
    disc = ((y - 7.5).square() + (x - 1).square()).sqrt() < 5.6
    return torch.nn.functional.avg_pool2d(0.15 + 0.7 * disc[None, None].double(), fine)


def _kernel_logits(x: Tensor, output_size: tuple[int, int]) -> Tensor:
    """(1, 25, Y, X): in place of CARAFE's trained encoder, likeness in place and in brightness."""
    size = tuple(x.shape[2:])
    source = bilinear(size, output_size, False)
    pixels, _ = carafe(size, x.new_zeros(1, 25, *output_size))
    distance = (pixels - source[0]).square().sum(1)
    brightness = torch.stack([attend(x, pixel[None], source[1])[0, 0] for pixel in pixels])
    middle = 0.5 * (x.max() + x.min())
    wanted = torch.where(attend(x, *source)[0, 0] > middle, x.max(), x.min())
    return (-0.7 * distance - 20 * (brightness - wanted).square())[None]


def _draw_attention(axes: Axes, x: Tensor, positions: Tensor, weights: Tensor) -> None:
    """Draw the points of ``OUTPUT_PIXELS`` over the input, the area of each dot its weight."""
    _show(axes, x)
    ticks = [pixel - 0.5 for pixel in range(INPUT_SIZE + 1)]
    axes.set_xticks(ticks, minor=True)
    axes.set_yticks(ticks, minor=True)
    axes.grid(which="minor", color="0.5", linewidth=0.5)
    for (i, j), color in OUTPUT_PIXELS.items():
        y, x = ((index + 0.5) / SCALE - 0.5 for index in (i, j))
        points, shares = positions[..., i, j].tolist(), weights[0, :, i, j].tolist()
        for (row, column), weight in zip(points, shares, strict=True):
            if weight > 0.005:
                axes.plot([x, column], [y, row], color=color, linewidth=0.8)
                axes.scatter(column, row, LARGEST_DOT * weight, color=color, edgecolors="black")
        axes.plot(x, y, "x", color="red", markersize=7, markeredgewidth=1.8)


def _show(axes: Axes, x: Tensor) -> None:
    axes.imshow(x[0, 0].numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
