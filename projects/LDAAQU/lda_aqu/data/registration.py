"""Registering datasets in Detectron2's catalogs, the built-in ones and a user's own alike.

Instances alone are for Detectron2's ``register_coco_instances``.
"""

import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, load_sem_seg
from detectron2.data.datasets.coco_panoptic import merge_to_panoptic

from ..errors import InputError, as_input_error
from .json_files import read_json
from .label_files import IGNORE_LABEL, IMAGE_SUFFIXES

# The class that stands for every thing in the semantic labels of a panoptic dataset, in the name
# and colour that Detectron2 gives it for COCO.
THINGS_CLASS = "things"
THINGS_COLOR = [82, 18, 128]


def register_semantic(
    name: str,
    *,
    image_root: str,
    sem_seg_root: str,
    stuff_classes: list[str],
    stuff_colors: list[list[int]] | None = None,
    ignore_label: int = IGNORE_LABEL,
) -> None:
    """Register images, and semantic labels of the same names.

    Args:
        name: of the dataset.
        image_root: folder of the images, which all have the same one of IMAGE_SUFFIXES.
        sem_seg_root: folder of the labels, ``.png``: 8-bit greyscale, an index of
            ``stuff_classes`` each.
        stuff_classes: names of the classes.
        stuff_colors: their colours, RGB; without them they are drawn in those of a palette.
        ignore_label: the label of what has no class.
    """
    DatasetCatalog.register(name, lambda: _load_semantic(image_root, sem_seg_root))
    MetadataCatalog.get(name).set(
        image_root=image_root,
        sem_seg_root=sem_seg_root,
        stuff_classes=stuff_classes,
        ignore_label=ignore_label,
        evaluator_type="sem_seg",
        **({"stuff_colors": stuff_colors} if stuff_colors else {}),
    )


def register_panoptic(
    name: str,
    *,
    image_root: str,
    json_file: str,
    sem_seg_root: str,
    panoptic_json: str,
    panoptic_root: str,
    categories: list[dict[str, Any]] | None = None,
) -> None:
    """Register instances and stuff, merged, as Panoptic FPN is trained on them.

    What Detectron2's ``register_coco_panoptic_separated`` does, under exactly this name.

    Args:
        name: of the dataset.
        image_root: folder of the images, which all have the same one of IMAGE_SUFFIXES.
        json_file: the things, in COCO's format of instances.
        sem_seg_root: folder of the semantic labels, see :func:`panoptic_classes`; what is ignored
            is IGNORE_LABEL.
        panoptic_json: things and stuff in COCO's panoptic format.
        panoptic_root: folder of its PNGs.
        categories: those of ``panoptic_json``; None to read them where the dataset is loaded.
    """
    metadata = MetadataCatalog.get(name)
    metadata.set(
        image_root=image_root,
        json_file=json_file,
        sem_seg_root=sem_seg_root,
        panoptic_json=panoptic_json,
        panoptic_root=panoptic_root,
        ignore_label=IGNORE_LABEL,
        evaluator_type="coco_panoptic_seg",
        **(panoptic_classes(categories) if categories else {}),
    )

    def load() -> list[dict[str, Any]]:
        if not categories:
            form = f"{panoptic_json!r} is not in COCO's panoptic format"
            with as_input_error(form, AttributeError, LookupError, TypeError):
                metadata.set(**panoptic_classes(read_json(panoptic_json)["categories"]))
        return merge_to_panoptic(
            load_coco_json(json_file, image_root, name), _load_semantic(image_root, sem_seg_root)
        )

    DatasetCatalog.register(name, load)


def panoptic_classes(categories: list[dict[str, Any]]) -> dict[str, Any]:
    """The classes of a dataset for Panoptic FPN, as Detectron2 defines them for COCO.

    Things are numbered from 0 by the instance head. The semantic head has class 0 for all of
    them, and numbers stuff from 1. Both are in the order of the ids.

    Args:
        categories: of COCO's panoptic format. Where all have a ``color``, so have the classes.

    Returns:
        ``thing_classes``, ``stuff_classes`` and the like, for a dataset's metadata.
    """
    categories = sorted(categories, key=lambda category: category["id"])
    things = [category for category in categories if category["isthing"]]
    stuff = [category for category in categories if not category["isthing"]]
    colors = {}
    if all("color" in category for category in categories):
        colors = {
            "thing_colors": [category["color"] for category in things],
            "stuff_colors": [THINGS_COLOR] + [category["color"] for category in stuff],
        }
    return {
        "thing_classes": [category["name"] for category in things],
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(things)},
        "stuff_classes": [THINGS_CLASS] + [category["name"] for category in stuff],
        "stuff_dataset_id_to_contiguous_id": {0: 0}
        | {c["id"]: i for i, c in enumerate(stuff, start=1)},
        **colors,
    }


def _load_semantic(image_root: str, sem_seg_root: str) -> list[dict[str, Any]]:
    """Detectron2's ``load_sem_seg``, with the suffix that the images have.

    Raises:
        InputError: there is no image, or there are some of different suffixes.
    """
    found = {Path(file).suffix for file in os.listdir(image_root)}
    suffixes = sorted(suffix for suffix in found if suffix.lower() in IMAGE_SUFFIXES)
    if len(suffixes) != 1:
        raise InputError(
            f"folder {image_root!r} has images of the suffixes {', '.join(suffixes) or 'none'}; "
            f"where there are semantic labels, all have the same one of {', '.join(IMAGE_SUFFIXES)}"
        )
    return load_sem_seg(sem_seg_root, image_root, image_ext=suffixes[0][1:])
