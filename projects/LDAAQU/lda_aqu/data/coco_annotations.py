"""What libraries would pass over in silence in a file of annotations in COCO's format."""

import logging
import math
from collections import Counter
from typing import Any

from ..errors import InputError, one_line
from .json_files import read_json

logger = logging.getLogger(__name__)


def check_coco_annotations(name: str, json_file: str, *, evaluated: bool = False) -> None:
    """Raise InputError for mistakes that would be trained on, or evaluated against, in silence.

    Boxes that reach out of their image are counted in a warning. Annotations of images that are not
    listed, empty boxes and polygons of less than three points are left to Detectron2, which leaves
    them out.

    Args:
        name: of the dataset.
        json_file: path of the file.
        evaluated: every annotation needs what an evaluation reads, ``area`` and ``iscrowd``, too.

    Raises:
        InputError: names the dataset, the file, the annotation, and what is allowed.
    """
    where = f"dataset {name}: {json_file!r}"
    content = read_json(json_file)
    try:
        images, _, annotations = (
            _by_id(content, kind) for kind in ("images", "categories", "annotations")
        )
        for image in images.values():
            if any(type(image[side]) is not int for side in ("width", "height")):
                raise ValueError(f"image {image['id']!r}: 'width' and 'height' must be integers")
        image_ids = [*images, *(a["image_id"] for a in annotations.values())]
        if len(types := {type(image_id).__name__ for image_id in image_ids}) > 1:
            raise ValueError(f"image ids are of several types: {', '.join(sorted(types))}")
        listed = [a for a in annotations.values() if a["image_id"] in images]
        if annotations and not listed:
            raise ValueError("no annotation is of an image that is listed")
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"{where} is not in COCO's format: {one_line(error)}") from error
    outside = 0
    for annotation in listed:
        try:
            outside += _reaches_out(annotation, images[annotation["image_id"]])
            flag = annotation["iscrowd"] if evaluated else annotation.get("iscrowd", 0)
            if flag not in (0, 1):
                raise ValueError(f"'iscrowd' is {flag!r}, but must be 0 or 1")
            if evaluated and not 0 <= annotation["area"] < math.inf:
                raise ValueError(
                    f"'area' is {annotation['area']!r}, but must be a number of pixels"
                )
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"{where}: annotation {annotation['id']!r}: {one_line(error)}"
            ) from error
    if outside:
        logger.warning(
            "%s: %d of %d boxes reach out of their image by more than a pixel, and are clipped; "
            "a box is [x, y, width, height]",
            where,
            outside,
            len(annotations),
        )


def _by_id(content: dict[str, Any], kind: str) -> dict[int | str, dict[str, Any]]:
    # Some test sets of COCO have images alone.
    entries = content.get(kind, []) if kind == "annotations" else content[kind]
    if not entries and kind != "annotations":
        raise ValueError(f"it has no {kind}")
    result = {entry["id"]: entry for entry in entries}
    if len(result) < len(entries):
        ((twice, _),) = Counter(entry["id"] for entry in entries).most_common(1)
        raise ValueError(f"it has two {kind} with the id {twice!r}")
    return result


def _reaches_out(annotation: dict[str, Any], image: dict[str, Any]) -> bool:
    """Whether a box reaches out of its image by more than a pixel."""
    x, y, width, height = box = annotation["bbox"]
    if not math.isfinite(x + y + width + height) or min(width, height) < 0:
        raise ValueError(
            f"'bbox' is {box}, but must be [x, y, width, height], finite and of no negative size"
        )
    right, bottom = image["width"], image["height"]
    inside = max(0, x) < min(right, x + width) and max(0, y) < min(bottom, y + height)
    if min(width, height) > 0 and not inside:
        raise ValueError(
            f"'bbox' {box} is outside of its image, {right} x {bottom}; "
            "a box is [x, y, width, height]"
        )
    return max(x + width - right, y + height - bottom, -x, -y) > 1
