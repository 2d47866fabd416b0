"""The built-in datasets, registered under ``$DETECTRON2_DATASETS`` on import.

Detectron2 itself registers COCO and ADE20K; see ``prepare.py`` for the label files they need.
"""

from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, load_sem_seg, register_coco_instances
from detectron2.data.datasets.coco_panoptic import merge_to_panoptic

from .glyphs import GLYPHS_CATEGORIES, IGNORE_LABEL, SPLITS
from .paths import datasets_root

BCCD_CLASSES = ["RBC", "WBC", "Platelets"]
DSB2018_CLASSES = ["nucleus"]

# The class that stands for every thing in the semantic labels of a panoptic dataset, in the name
# and colour that Detectron2 gives it for COCO.
THINGS_CLASS = "things"
THINGS_COLOR = [82, 18, 128]

# Names and colours as they are usual for CamVid with 11 classes.
CAMVID_CLASSES = {
    "sky": [128, 128, 128],
    "building": [128, 0, 0],
    "pole": [192, 192, 128],
    "road": [128, 64, 128],
    "pavement": [60, 40, 222],
    "tree": [128, 128, 0],
    "sign symbol": [192, 128, 128],
    "fence": [64, 64, 128],
    "car": [64, 0, 128],
    "pedestrian": [64, 64, 0],
    "bicyclist": [0, 128, 192],
}


def _register_instances(name: str, splits: tuple[str, ...], classes: list[str]) -> None:
    """Register ``<name>_<split>`` from <root>/<name>/annotations/<split>.json and images/."""
    folder = datasets_root() / name
    for split in splits:
        register_coco_instances(
            f"{name}_{split}",
            {"thing_classes": classes},
            str(folder / "annotations" / f"{split}.json"),
            str(folder / "images"),
        )


def _register_sem_seg(
    name: str, image_root: Path, sem_seg_root: Path, classes: list[str], colors: list[list[int]]
) -> None:
    """Register .jpg images, and .png labels of the same names, of which 255 is ignored."""
    DatasetCatalog.register(name, lambda: load_sem_seg(str(sem_seg_root), str(image_root)))
    MetadataCatalog.get(name).set(
        image_root=str(image_root),
        sem_seg_root=str(sem_seg_root),
        stuff_classes=classes,
        stuff_colors=colors,
        ignore_label=IGNORE_LABEL,
        evaluator_type="sem_seg",
    )


def _panoptic_separated_metadata(categories: list[dict[str, Any]]) -> dict[str, Any]:
    """The classes of a dataset for Panoptic FPN, as Detectron2 defines them for COCO.

    Things are numbered from 0 by the instance head. The semantic head has class 0 for all of
    them, and numbers stuff from 1.

    Args:
        categories: of COCO's panoptic format, each kind in order of id, with ``color``.
    """
    things = [category for category in categories if category["isthing"]]
    stuff = [category for category in categories if not category["isthing"]]
    return {
        "thing_classes": [category["name"] for category in things],
        "thing_colors": [category["color"] for category in things],
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(things)},
        "stuff_classes": [THINGS_CLASS] + [category["name"] for category in stuff],
        "stuff_colors": [THINGS_COLOR] + [category["color"] for category in stuff],
        "stuff_dataset_id_to_contiguous_id": {0: 0}
        | {c["id"]: i for i, c in enumerate(stuff, start=1)},
    }


def _register_panoptic_separated(
    name: str, root: Path, split: str, categories: list[dict[str, Any]]
) -> None:
    """Register instances and stuff of one split, merged, as Panoptic FPN is trained on them.

    What Detectron2's ``register_coco_panoptic_separated`` does, under exactly this name.
    """
    image_root, sem_seg_root = str(root / split), str(root / f"panoptic_stuff_{split}")
    json_file = str(root / "annotations" / f"instances_{split}.json")
    DatasetCatalog.register(
        name,
        lambda: merge_to_panoptic(
            load_coco_json(json_file, image_root, name), load_sem_seg(sem_seg_root, image_root)
        ),
    )
    MetadataCatalog.get(name).set(
        image_root=image_root,
        json_file=json_file,
        sem_seg_root=sem_seg_root,
        panoptic_root=str(root / f"panoptic_{split}"),
        panoptic_json=str(root / "annotations" / f"panoptic_{split}.json"),
        ignore_label=IGNORE_LABEL,
        evaluator_type="coco_panoptic_seg",
        **_panoptic_separated_metadata(categories),
    )


def _register_glyphs() -> None:
    """Register the demo dataset for each task; its layout is described in ``glyphs.py``."""
    root = datasets_root() / "glyphs"
    things = [category for category in GLYPHS_CATEGORIES if category["isthing"]]
    thing_metadata = {
        "thing_classes": [category["name"] for category in things],
        "thing_colors": [category["color"] for category in things],
    }
    for split in SPLITS:
        register_coco_instances(
            f"glyphs_{split}",
            thing_metadata,
            str(root / "annotations" / f"instances_{split}.json"),
            str(root / split),
        )
        _register_sem_seg(
            f"glyphs_sem_seg_{split}",
            root / split,
            root / f"semantic_{split}",
            [category["name"] for category in GLYPHS_CATEGORIES],
            [category["color"] for category in GLYPHS_CATEGORIES],
        )
        _register_panoptic_separated(f"glyphs_panoptic_{split}", root, split, GLYPHS_CATEGORIES)


def _register_camvid() -> None:
    """Register ``camvid_{train,val,test}`` from <root>/camvid/{images,labels}/<split>/."""
    root = datasets_root() / "camvid"
    for split in ("train", "val", "test"):
        _register_sem_seg(
            f"camvid_{split}",
            root / "images" / split,
            root / "labels" / split,
            list(CAMVID_CLASSES),
            list(CAMVID_CLASSES.values()),
        )


_register_instances("bccd", ("train", "val", "test"), BCCD_CLASSES)
_register_instances("dsb2018", ("train", "val"), DSB2018_CLASSES)
_register_camvid()
_register_glyphs()
