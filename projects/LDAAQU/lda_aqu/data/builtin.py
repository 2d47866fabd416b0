"""The built-in datasets, registered under ``$DETECTRON2_DATASETS`` on import."""

from detectron2.data.datasets import register_coco_instances

from .paths import datasets_root

BCCD_CLASSES = ["RBC", "WBC", "Platelets"]
DSB2018_CLASSES = ["nucleus"]


def _register(name: str, splits: tuple[str, ...], classes: list[str]) -> None:
    """Register ``<name>_<split>`` from <root>/<name>/annotations/<split>.json and images/."""
    folder = datasets_root() / name
    for split in splits:
        register_coco_instances(
            f"{name}_{split}",
            {"thing_classes": classes},
            str(folder / "annotations" / f"{split}.json"),
            str(folder / "images"),
        )


_register("bccd", ("train", "val", "test"), BCCD_CLASSES)
_register("dsb2018", ("train", "val"), DSB2018_CLASSES)
