"""Checking an annotation file in COCO's format, with errors that name the entry at fault."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError

logger = logging.getLogger(__name__)


def check_coco_annotations(json_file: str, *, evaluated: bool = False) -> None:
    """Raise InputError unless a file can be trained on, or evaluated against.

    Harmless oddities are left to Detectron2, which clips boxes that reach out of their image, and
    leaves out empty boxes, polygons of less than three points and annotations of images that are
    not listed.

    Args:
        json_file: path of the file.
        evaluated: the annotations need what an evaluation reads, ``area`` and ``iscrowd``, too.

    Raises:
        InputError: names the file, the entry, its field and what is allowed.
    """
    _Checker(json_file, evaluated).check()


class _Checker:
    def __init__(self, json_file: str, evaluated: bool) -> None:
        self._json_file = json_file
        self._evaluated = evaluated

    def check(self) -> None:
        try:
            content = json.loads(Path(self._json_file).read_bytes())
        except OSError as error:
            raise self._error(f"cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise self._error(f"cannot be read: it is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise self._error("is not in COCO's format: it is no object with 'images'")
        images = self._entries(content, "images")
        categories = self._entries(content, "categories")
        annotations = self._entries(content, "annotations")
        for image in images.values():
            self._check_image(image)
        for category in categories.values():
            self._require(category, "category", "name", isinstance(category.get("name"), str))
        outside = sum(self._check_annotation(a, images, categories) for a in annotations.values())
        if outside:
            logger.warning(
                "%r: %d of %d boxes reach out of their image by more than a pixel, and are "
                "clipped; a box is [x, y, width, height]",
                self._json_file,
                outside,
                len(annotations),
            )

    def _error(self, problem: str) -> InputError:
        return InputError(f"{self._json_file!r} {problem}")

    def _entries(self, content: dict[str, Any], kind: str) -> dict[int | str, dict[str, Any]]:
        """The entries of a list by their ids."""
        # Some test sets of COCO have images alone.
        entries = content.get(kind, [] if kind == "annotations" else None)
        if not isinstance(entries, list):
            raise self._error(f"is not in COCO's format: it has no list {kind!r}")
        if not entries and kind != "annotations":
            raise self._error(f"has no {kind}")
        types = (int, str) if kind == "images" else (int,)
        result = {}
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict) or type(entry.get("id")) not in types:
                raise self._error(f"{kind}[{index}] must be an object with a number as 'id'")
            if entry["id"] in result:
                raise self._error(f"has two {kind} with the id {entry['id']!r}")
            result[entry["id"]] = entry
        if len({type(key) for key in result}) > 1:
            raise self._error(f"has {kind} with integers and with strings as ids")
        return result

    def _require(self, entry: dict[str, Any], kind: str, field: str, holds: bool) -> None:
        if not holds:
            found = repr(entry[field]) if field in entry else "missing"
            raise self._error(
                f"{kind} {entry['id']!r}: {field!r} is {found[:80]}, but must be "
                f"{_ALLOWED[kind, field]}"
            )

    def _check_image(self, image: dict[str, Any]) -> None:
        name = image.get("file_name")
        self._require(image, "image", "file_name", isinstance(name, str) and name != "")
        for field in ("width", "height"):
            size = image.get(field)
            self._require(image, "image", field, type(size) is int and size > 0)

    def _check_annotation(self, annotation: dict[str, Any], images: dict, categories: dict) -> bool:
        """Check one annotation: whether its box reaches out of its image."""

        def require(field: str, holds: bool) -> None:
            self._require(annotation, "annotation", field, holds)

        require("image_id", _is_id(annotation.get("image_id")))
        category = annotation.get("category_id")
        require("category_id", _is_id(category) and category in categories)
        box = annotation.get("bbox")
        require("bbox", _are_numbers(box) and len(box) == 4 and min(box[2:]) >= 0)
        if "iscrowd" in annotation or self._evaluated:
            require("iscrowd", annotation.get("iscrowd") in (0, 1))
        if self._evaluated:
            area = annotation.get("area")
            require("area", _are_numbers([area]) and area >= 0)
        require("ignore", not annotation.get("ignore"))
        image = images.get(annotation["image_id"])
        if image is None:
            return False
        x, y, width, height = box
        beyond = x + width - image["width"], y + height - image["height"], -x, -y
        inside = max(0, x) < min(image["width"], x + width) and max(0, y) < min(
            image["height"], y + height
        )
        if width > 0 and height > 0 and not inside:
            raise self._error(
                f"annotation {annotation['id']!r}: 'bbox' {box} is outside of its image, "
                f"{image['width']} x {image['height']}; a box is [x, y, width, height]"
            )
        segmentation = annotation.get("segmentation")
        if segmentation:
            require("segmentation", _is_mask(segmentation, image["height"], image["width"]))
        return max(beyond) > 1


_ALLOWED = {
    ("image", "file_name"): "a string",
    ("image", "width"): "a positive integer",
    ("image", "height"): "a positive integer",
    ("category", "name"): "a string",
    ("annotation", "image_id"): "the id of an image",
    ("annotation", "category_id"): "the id of a category",
    ("annotation", "bbox"): "[x, y, width, height], finite and of no negative size",
    ("annotation", "iscrowd"): "0 or 1",
    ("annotation", "area"): "a number of pixels",
    ("annotation", "ignore"): "0, as others are not supported",
    ("annotation", "segmentation"): (
        "a list of polygons [x, y, x, y, ...], or an RLE with 'counts' and the image's height and "
        "width as 'size'"
    ),
}


def _is_id(value: Any) -> bool:
    return type(value) in (int, str)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) in (int, float) and math.isfinite(value) for value in values
    )


def _is_mask(segmentation: Any, height: int, width: int) -> bool:
    """Whether it is polygons, or a run-length encoding of so many pixels."""
    if isinstance(segmentation, list):
        return all(map(_are_numbers, segmentation))
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        return False
    runs = segmentation.get("counts")
    if isinstance(runs, str):
        runs = _decode_runs(runs)
    elif not (isinstance(runs, list) and all(type(run) is int for run in runs)):
        return False
    return runs is not None and all(run >= 0 for run in runs) and sum(runs) == height * width


def _decode_runs(counts: str) -> list[int] | None:
    """The runs of a compressed run-length encoding, or None where it is none.

    Each run is a number in groups of five bits, the lowest first, in the characters from "0" on; a
    sixth bit says that another group follows. From the fourth on it is the difference to the run
    two before.
    """
    groups = np.frombuffer(counts.encode(errors="replace"), np.uint8).astype(np.int64) - ord("0")
    if not len(groups) or groups.min() < 0 or groups.max() >= 64 or groups[-1] & 32:
        return None
    ends = np.flatnonzero(groups & 32 == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 8:  # more than any image has pixels
        return None
    places = np.arange(len(groups)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((groups & 31) << (5 * places), starts)
    runs -= ((groups[ends] & 16) > 0) * (np.int64(1) << (5 * lengths))
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs.tolist()
