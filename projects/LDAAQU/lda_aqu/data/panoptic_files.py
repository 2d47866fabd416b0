"""The PNGs of COCO's panoptic format, whose colours are the ids of segments."""

import os
from collections.abc import Iterable

import numpy as np

from ..errors import InputError, first_few
from .label_files import read_pixels


def id2rgb(ids: np.ndarray) -> np.ndarray:
    """Segment ids (H, W), from 0 to 2**24 - 1, as colours.

    Returns:
        (H, W, 3) uint8; the id is R + 256 G + 65536 B.
    """
    return np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)


def rgb2id(colors: np.ndarray) -> np.ndarray:
    """The segment ids (H, W), int32, of colours (H, W, 3): see :func:`id2rgb`."""
    return colors.astype(np.int32) @ np.array([1, 2**8, 2**16], np.int32)


def read_segment_ids(
    path: str | os.PathLike, size: tuple[int, int], listed: Iterable[int]
) -> np.ndarray:
    """Read a panoptic PNG.

    Args:
        path: the file.
        size: (width, height) of its image.
        listed: the ids that it may hold, those in the ``segments_info`` of its annotation; and 0,
            for pixels of no segment.

    Returns:
        The segment id of each pixel, int32, (height, width).

    Raises:
        InputError: see :func:`~.label_files.read_pixels`; or it has other ids.
    """
    file = f"panoptic file {str(path)!r}"
    ids = rgb2id(read_pixels(file, path, "RGB", size))
    unknown = sorted(set(np.unique(ids).tolist()) - {0, *listed})
    if unknown:
        raise InputError(
            f"{file} has the segment ids {first_few(unknown)}, which its annotation does not list"
        )
    return ids
