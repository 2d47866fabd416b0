"""Reading images as Detectron2 does; those of more than 8 bits, by ``INPUT.VALUE_RANGE``."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from PIL import Image

from .label_files import UNREADABLE, ImageHeader, UnreadableImageError, read_header


def is_deep(header: ImageHeader, value_range: Sequence[float]) -> bool:
    """Whether an image has more than 8 bits.

    Args:
        header: of the image file.
        value_range: ``INPUT.VALUE_RANGE``.

    Raises:
        UnreadableImageError: it has, and there is no range, or it is in colour.
    """
    if not header.mode.startswith(("I", "F")):
        if ";16" in header.stored_as:
            raise UnreadableImageError(
                f"image file {header.path!r} is in colour with 16 bits a channel, of which the "
                "lower 8 would be dropped: store it with 8 bits"
            )
        return False
    if not value_range:
        raise UnreadableImageError(
            f"image file {header.path!r} has values of more than 8 bits (mode {header.mode}), "
            "which would be clipped at 255: set INPUT.VALUE_RANGE to those that are black and white"
        )
    return True


def read_image_file(
    path: str, image_format: str | None, value_range: Sequence[float] = ()
) -> np.ndarray:
    """Read an image, turned as its EXIF orientation says.

    Args:
        path: the file.
        image_format: one of ``INPUT.FORMAT``, or None for the stored values (labels).
        value_range: ``INPUT.VALUE_RANGE``.

    Returns:
        What Detectron2's ``read_image`` does: (H, W, channels) in ``image_format``, uint8 but for
        YUV; or (H, W).

    Raises:
        UnreadableImageError: naming the file and what is wrong with it.
    """
    deep = is_deep(read_header(path), value_range)
    try:
        image = detection_utils.read_image(path, None if deep else image_format)
    except UNREADABLE as error:
        raise UnreadableImageError(f"image file {path!r} cannot be read: {error}") from error
    return _to_8_bits(image, image_format, value_range) if deep else image


def _to_8_bits(
    values: np.ndarray, image_format: str | None, value_range: Sequence[float]
) -> np.ndarray:
    """Map (H, W) values of any type to 0 to 255, linearly; those beyond are clipped, NaN is 0."""
    low, high = value_range
    finite = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    scaled = (finite.clip(low, high) - low) * (255 / (high - low))
    grey = Image.fromarray(scaled.round().astype(np.uint8))
    return detection_utils.convert_PIL_to_numpy(grey, image_format)


class ImageMapper:
    """Detectron2's mapper, which reads images of more than 8 bits, too.

    Args:
        cfg: a config with this project's keys.
        is_train: as in :class:`DatasetMapper`.
        options: what is to be otherwise than the config makes it, as in :class:`DatasetMapper`.
    """

    def __init__(self, cfg: CfgNode, *, is_train: bool, **options: Any) -> None:
        self._value_range = cfg.INPUT.VALUE_RANGE
        self._mapper = DatasetMapper(cfg, is_train=is_train, **options)
        # Takes the values as they are stored, and scales them before all else.
        scale = partial(_to_8_bits, image_format=cfg.INPUT.FORMAT, value_range=self._value_range)
        self._deep_mapper = copy.copy(self._mapper)
        self._deep_mapper.image_format = None
        self._deep_mapper.augmentations = T.AugmentationList(
            [T.ColorTransform(scale), *self._mapper.augmentations.augs]
        )

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """The input of the model for a dataset dict.

        Raises:
            UnreadableImageError: see :func:`is_deep`; or the header cannot be read.
            Exception: what Detectron2 and Pillow raise of files that cannot be read.
        """
        deep = is_deep(read_header(record["file_name"]), self._value_range)
        return (self._deep_mapper if deep else self._mapper)(record)


def build_mapper(cfg: CfgNode) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The mapper of an evaluation, from a dataset dict to the input of the model.

    It raises an UnreadableImageError, naming the file, where the image cannot be prepared.
    """
    mapper = ImageMapper(cfg, is_train=False)

    def prepare(dataset_dict: dict[str, Any]) -> dict[str, Any]:
        try:
            return mapper(dataset_dict)
        except UNREADABLE as error:
            raise UnreadableImageError(
                f"image file {dataset_dict['file_name']!r} cannot be prepared: {error}"
            ) from error

    return prepare
