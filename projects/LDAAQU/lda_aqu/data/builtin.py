"""The built-in datasets, registered under ``$DETECTRON2_DATASETS`` on import.

Detectron2 itself registers COCO and ADE20K; see ``prepare.py`` for the label files they need.
"""

from detectron2.data.datasets import register_coco_instances

from .glyphs import GLYPHS_CATEGORIES, SPLITS
from .paths import datasets_root
from .registration import register_panoptic, register_semantic

BCCD_CLASSES = ["RBC", "WBC", "Platelets"]
DSB2018_CLASSES = ["nucleus"]

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


def _register_glyphs() -> None:
    """Register the demo dataset for each task; its layout is described in ``glyphs.py``."""
    root = datasets_root() / "glyphs"
    things = [category for category in GLYPHS_CATEGORIES if category["isthing"]]
    thing_metadata = {
        "thing_classes": [category["name"] for category in things],
        "thing_colors": [category["color"] for category in things],
    }
    for split in SPLITS:
        images = str(root / split)
        instances = str(root / "annotations" / f"instances_{split}.json")
        register_coco_instances(f"glyphs_{split}", thing_metadata, instances, images)
        register_semantic(
            f"glyphs_sem_seg_{split}",
            image_root=images,
            sem_seg_root=str(root / f"semantic_{split}"),
            stuff_classes=[category["name"] for category in GLYPHS_CATEGORIES],
            stuff_colors=[category["color"] for category in GLYPHS_CATEGORIES],
        )
        register_panoptic(
            f"glyphs_panoptic_{split}",
            image_root=images,
            json_file=instances,
            sem_seg_root=str(root / f"panoptic_stuff_{split}"),
            panoptic_json=str(root / "annotations" / f"panoptic_{split}.json"),
            panoptic_root=str(root / f"panoptic_{split}"),
            categories=GLYPHS_CATEGORIES,
        )


def _register_camvid() -> None:
    """Register ``camvid_{train,val,test}`` from <root>/camvid/{images,labels}/<split>/."""
    root = datasets_root() / "camvid"
    for split in ("train", "val", "test"):
        register_semantic(
            f"camvid_{split}",
            image_root=str(root / "images" / split),
            sem_seg_root=str(root / "labels" / split),
            stuff_classes=list(CAMVID_CLASSES),
            stuff_colors=list(CAMVID_CLASSES.values()),
        )


_register_instances("bccd", ("train", "val", "test"), BCCD_CLASSES)
_register_instances("dsb2018", ("train", "val"), DSB2018_CLASSES)
_register_camvid()
_register_glyphs()
