"""The images of a registered dataset with their labels."""

import difflib
import os
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import (
    annotations_to_instances,
    transform_instance_annotations,
)
from detectron2.data.transforms import TransformList

from ..errors import InputError, one_line
from .check_each import SECONDS, check_each

Record = dict[str, Any]
"""An image with its labels, in Detectron2's format."""

Object = tuple[Record, dict[str, Any]]
"""An image, and one of its annotations."""

_MASK_SIDE = 28  # to which a mask head's targets are cropped


def check_dataset_name(name: str, where: str) -> None:
    """Raise InputError, with the nearest registered names, if no dataset is called ``name``."""
    known = DatasetCatalog.list()
    if name not in known:
        near = difflib.get_close_matches(name, known, 5, cutoff=0.5)
        hint = f"nearest registered: {', '.join(near)}; " if near else ""
        raise InputError(
            f"{where}: no dataset {name!r} is registered; {hint}"
            "DATASETS.COCO_FORMAT registers one of your own"
        )


def load_records(name: str) -> list[Record]:
    """The images of a registered dataset with their labels.

    Raises:
        InputError: its files cannot be read, or it has no images.
    """
    metadata = MetadataCatalog.get(name)
    folder = metadata.get("sem_seg_root")
    source = metadata.get("json_file") or folder or name
    try:
        records = DatasetCatalog.get(name)
    except InputError as error:
        raise InputError(f"dataset {name}: {error}") from error
    # Whatever is raised while files of any origin are parsed says that they cannot be used.
    except Exception as error:
        key = str(error.args[0]) if isinstance(error, KeyError) else ""
        if folder and key.startswith(metadata.image_root):
            # How Detectron2 fails to merge instances with the semantic labels of an image.
            label = os.path.join(folder, Path(key).stem + ".png")
            missing = label if os.path.exists(key) else key
            raise InputError(f"dataset {name}: {missing!r} is missing") from error
        # Detectron2's load_coco_json names its annotation so.
        frames = (frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__))
        where = next((f", annotation {f['anno']['id']!r}," for f in frames if "anno" in f), "")
        raise InputError(
            f"dataset {name}: {source!r}{where} cannot be read: {one_line(error)}"
        ) from error
    if not records:
        raise InputError(f"dataset {name} has no images ({source!r})")
    return records


def check_objects(name: str, objects: list[Object], mask_format: str | None) -> None:
    """Check annotations of a dataset: see :func:`check_object` and :func:`.check_each.check_each`.

    Args:
        name: of the dataset.
        objects: images and, of each, an annotation. A large number is tried for SECONDS.
        mask_format: ``INPUT.MASK_FORMAT``; None where no masks are used.
    """

    def check(item: Object) -> None:
        check_object(*item, mask_format)

    def describe(item: Object) -> str:
        record, annotation = item
        return f"annotation with bbox {annotation.get('bbox')} of {record['file_name']!r}"

    check_each(name, "annotations", objects, check, describe, seconds=SECONDS)


def check_object(record: Record, annotation: dict[str, Any], mask_format: str | None) -> None:
    """Make of an annotation what training makes of it.

    Args:
        record: its image.
        annotation: one of the image's ``annotations``; it is left as it is.
        mask_format: ``INPUT.MASK_FORMAT``; None where no masks are used.

    Raises:
        InputError: it has no mask, or one of another format, or of damaged numbers.
        Exception: what Detectron2 raises of annotations that it cannot use.
    """
    size = record["height"], record["width"]
    mask = annotation.get("segmentation") if mask_format else None
    if mask_format and not mask:
        raise InputError("it has no mask: give it one, or set MODEL.MASK_ON False")
    if mask_format == "polygon" and isinstance(mask, dict):
        raise InputError("its mask is an RLE: set INPUT.MASK_FORMAT bitmask")
    if isinstance(mask, dict) and mask["size"] != [*size]:
        raise InputError(f"its mask is of the size {mask['size']}, its image of {[*size]}")
    if isinstance(mask, list) and not np.isfinite(np.concatenate(mask)).all():
        raise InputError("its polygons have coordinates that are not finite")
    used = {key: annotation[key] for key in ("bbox", "bbox_mode", "category_id")}
    used |= {"segmentation": mask} if mask else {}
    used = transform_instance_annotations(used, TransformList([]), size)
    instances = annotations_to_instances([used], size, mask_format or "polygon")
    if mask_format == "polygon":
        instances.gt_masks.crop_and_resize(instances.gt_boxes.tensor, _MASK_SIDE)
    # A decoder leaves what the runs do not reach as the memory was.
    decoded = used.get("segmentation")
    if isinstance(decoded, np.ndarray) and np.count_nonzero(decoded) != mask_util.area(mask):
        raise InputError("its RLE has fewer pixels than its size")
