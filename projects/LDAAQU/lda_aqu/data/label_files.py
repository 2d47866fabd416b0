"""Reading semantic label files as Detectron2 reads them, with errors that name the file."""

import os

import numpy as np
from PIL import ExifTags, Image

from ..errors import InputError

# What Pillow raises for files that are missing, cut short or no image.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

_MAX_SHOWN = 8


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) of an image, turned as its EXIF orientation says, from its header alone.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except UNREADABLE as error:
        raise InputError(f"image file {str(path)!r} cannot be read: {error}") from error
    return (height, width) if on_its_side else (width, height)


def read_label(
    path: str | os.PathLike, size: tuple[int, int], classes: range, ignored: int | None
) -> np.ndarray:
    """Read a label file.

    Args:
        path: an 8-bit greyscale image; of others Detectron2 would read the brightness.
        size: (width, height) of the labelled image.
        classes: the values it may hold.
        ignored: one more, for pixels without a class; None for none.

    Returns:
        The label of each pixel, uint8, (height, width).

    Raises:
        InputError: the file cannot be read, is not greyscale, has another size, or other values.
    """
    file = f"label file {str(path)!r}"
    try:
        with Image.open(path) as image:
            mode, found_size = image.mode, image.size
            label = np.asarray(image)
    except UNREADABLE as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if mode != "L":
        raise InputError(f"{file} has the mode {mode}; it must be L, i.e. 8-bit greyscale")
    if found_size != tuple(size):
        raise InputError(
            f"{file} has {found_size[0]} x {found_size[1]} pixels, its image {size[0]} x {size[1]}"
        )
    values = np.flatnonzero(np.bincount(label.ravel(), minlength=256)).tolist()
    wrong = [value for value in values if value not in classes and value != ignored]
    if wrong:
        allowed = f"{classes[0]} to {classes[-1]}"
        if ignored is not None:
            allowed += f", and {ignored} for what is ignored"
        raise InputError(f"{file} has the values {first_few(wrong)}; allowed are {allowed}")
    return label


def first_few(values: list) -> str:
    """The first values of a list, for a message."""
    return ", ".join(map(str, values[:_MAX_SHOWN])) + (", ..." if len(values) > _MAX_SHOWN else "")
