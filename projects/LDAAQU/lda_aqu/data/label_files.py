"""Reading image and label files as Detectron2 reads them, with errors that name the file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from ..errors import InputError, first_few

# What Pillow raises for files that are missing, cut short or no image.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

IGNORE_LABEL = 255
"""The semantic label of what has no class, unless a dataset says otherwise."""


class UnreadableImageError(InputError):
    """An image file that is missing, cut short, of too many bits, or no image at all."""


@contextmanager
def _open(file: str, path: str | os.PathLike) -> Iterator[Image.Image]:
    """Open an image; what fails in the block names it as ``file``."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UnreadableImageError(f"{file} is no regular file")  # a pipe would be waited for
    try:
        with Image.open(path) as image:
            yield image
    except UNREADABLE as error:
        raise UnreadableImageError(f"{file} cannot be read: {error}") from error


class ImageHeader(NamedTuple):
    """What an image file says of itself before its pixels."""

    path: str
    size: tuple[int, int]
    """(width, height), turned as its EXIF orientation says."""
    mode: str
    """Pillow's name of the pixels it makes of it."""
    stored_as: str
    """Pillow's name of how the file holds them, e.g. "RGB;16B"; it may be within other text."""


def read_header(path: str | os.PathLike) -> ImageHeader:
    """Read the header of an image file.

    Raises:
        UnreadableImageError: the file cannot be read.
    """
    with _open(f"image file {str(path)!r}", path) as image:
        width, height = image.size
        stored_as = str([tile[3] for tile in image.tile])
        try:
            on_its_side = image.getexif().get(ExifTags.Base.Orientation) in range(5, 9)
        except Exception:  # Detectron2 takes an image whose EXIF is damaged as it is
            on_its_side = False
        size = (height, width) if on_its_side else (width, height)
        return ImageHeader(str(path), size, image.mode, stored_as)


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) of an image: see :func:`read_header`."""
    return read_header(path).size


def read_pixels(file: str, path: str | os.PathLike, mode: str, size: tuple[int, int]) -> np.ndarray:
    """Read a file of labels.

    Args:
        file: what to call it in messages.
        path: where it is.
        mode: Pillow's name of its format: L, i.e. 8-bit greyscale, or RGB.
        size: (width, height) of the labelled image.

    Returns:
        uint8, (height, width) or (height, width, 3).

    Raises:
        InputError: the file cannot be read, or is of another mode or size.
    """
    with _open(file, path) as image:
        found_mode, found_size = image.mode, image.size
        pixels = np.asarray(image)
    if found_mode != mode:
        raise InputError(f"{file} has the mode {found_mode}; it must be {mode}")
    if found_size != tuple(size):
        raise InputError(
            f"{file} has {found_size[0]} x {found_size[1]} pixels, its image {size[0]} x {size[1]}"
        )
    return pixels


def read_label(
    path: str | os.PathLike, size: tuple[int, int], classes: range, ignored: int | None
) -> np.ndarray:
    """Read a file of semantic labels.

    Args:
        path: an 8-bit greyscale image; of others Detectron2 would read the brightness.
        size: (width, height) of the labelled image.
        classes: the values it may hold.
        ignored: one more, for pixels without a class; None for none.

    Returns:
        The label of each pixel, uint8, (height, width).

    Raises:
        InputError: see :func:`read_pixels`; or it has other values.
    """
    file = f"label file {str(path)!r}"
    label = read_pixels(file, path, "L", size)
    values = np.flatnonzero(np.bincount(label.ravel(), minlength=256)).tolist()
    wrong = [value for value in values if value not in classes and value != ignored]
    if wrong:
        allowed = f"{classes[0]} to {classes[-1]}"
        if ignored is not None:
            allowed += f", and {ignored} for what is ignored"
        raise InputError(f"{file} has the values {first_few(wrong)}; allowed are {allowed}")
    return label
