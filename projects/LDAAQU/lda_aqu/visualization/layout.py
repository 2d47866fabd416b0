"""Pictures put together: with a caption, side by side, and in a grid."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

BACKGROUND = (24, 24, 24)
FOREGROUND = (240, 240, 240)
GAP = 8  # pixels
CELL_SIZE = (1280, 480)  # of the contact sheet's pictures at most, (width, height)
MAX_CELLS = 16


def captioned(picture: Image.Image, caption: str) -> Image.Image:
    """Put a caption, in proportion to the picture and at least 16 pixels high, above it."""
    font_size = max(16, picture.height // 30)
    band = font_size * 3 // 2
    result = Image.new("RGB", (picture.width, picture.height + band), BACKGROUND)
    ImageDraw.Draw(result).text(
        (font_size // 2, band // 2),
        caption,
        fill=FOREGROUND,
        font=ImageFont.load_default(font_size),
        anchor="lm",
    )
    result.paste(picture, (0, band))
    return result


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Put pictures in one row, a small gap between them."""
    return _grid(pictures, columns=len(pictures))


def contact_sheet(files: Sequence[Path], names: Sequence[str]) -> Image.Image:
    """Put the first ``MAX_CELLS`` pictures in one grid, each under its name.

    Args:
        files: the pictures, at least one. Larger ones are shrunk to ``CELL_SIZE``.
        names: their captions.

    Returns:
        The sheet, about as wide as it is high.
    """
    cells = []
    for file, name in zip(files[:MAX_CELLS], names, strict=False):
        with Image.open(file) as picture:
            picture.thumbnail(CELL_SIZE)
            cells.append(captioned(picture, name))
    width, height = _largest(cells)
    return _grid(cells, columns=min(len(cells), math.ceil(math.sqrt(len(cells) * height / width))))


def _grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    width, height = _largest(pictures)
    rows = math.ceil(len(pictures) / columns)
    size = (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP)
    grid = Image.new("RGB", size, BACKGROUND)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        grid.paste(picture, (column * (width + GAP), row * (height + GAP)))
    return grid


def _largest(pictures: Sequence[Image.Image]) -> tuple[int, int]:
    return max(p.width for p in pictures), max(p.height for p in pictures)
