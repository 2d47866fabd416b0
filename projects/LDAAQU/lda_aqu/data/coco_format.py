"""A user's own datasets in COCO format, from the config alone."""

import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from ..errors import InputError
from .paths import datasets_root

ENTRY_KEYS = {"ANNOTATIONS", "IMAGES"}


def register_coco_format_datasets(entries: CfgNode) -> None:
    """Register the entries of ``DATASETS.COCO_FORMAT``, ``{name: {ANNOTATIONS, IMAGES}}``.

    Relative paths are relative to :func:`datasets_root`. An entry that is registered already, with
    the same annotation file, is left as it is.

    Raises:
        InputError: an entry lacks a key or has another, a path does not exist, or its name is
            taken by another dataset.
    """
    for name, entry in entries.items():
        where = f"DATASETS.COCO_FORMAT.{name}"
        if not isinstance(entry, CfgNode) or set(entry) != ENTRY_KEYS:
            raise InputError(f"{where}: needs the keys ANNOTATIONS and IMAGES, and no other")
        if not all(isinstance(path, str) for path in (name, *entry.values())):
            raise InputError(f"{where}: the name and both paths must be strings")
        annotations = _resolve(f"{where}.ANNOTATIONS", entry.ANNOTATIONS, os.path.isfile)
        images = _resolve(f"{where}.IMAGES", entry.IMAGES, os.path.isdir)
        if name not in DatasetCatalog.list():
            register_coco_instances(name, {}, annotations, images)
        elif MetadataCatalog.get(name).get("json_file") != annotations:
            raise InputError(f"{where}: a dataset of that name exists; choose another name")


def _resolve(key: str, path: str, exists) -> str:
    resolved = str(datasets_root() / os.path.expanduser(path))
    if not exists(resolved):
        raise InputError(f"{key}: {resolved!r} does not exist")
    return resolved
