"""A user's own datasets, from the config alone."""

import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from ..errors import InputError, did_you_mean, shorten
from .label_files import IGNORE_LABEL
from .paths import datasets_root
from .registration import register_panoptic, register_semantic

# The keys of an entry, and what they are in a dataset's metadata.
_ATTRIBUTES = {
    "ANNOTATIONS": "json_file",
    "IMAGES": "image_root",
    "PANOPTIC_ANNOTATIONS": "panoptic_json",
    "PANOPTIC_LABELS": "panoptic_root",
    "SEMANTIC_LABELS": "sem_seg_root",
    "CLASSES": "stuff_classes",
    "IGNORE_VALUE": "ignore_label",
}
_FILES = ("ANNOTATIONS", "PANOPTIC_ANNOTATIONS")


def _register_instances(name: str, json_file: str, image_root: str) -> None:
    register_coco_instances(name, {}, json_file, image_root)


# The keys that an entry may have, and how it is registered then.
_KINDS = {
    ("ANNOTATIONS", "IMAGES"): _register_instances,
    (
        *("ANNOTATIONS", "IMAGES"),
        *("PANOPTIC_ANNOTATIONS", "PANOPTIC_LABELS", "SEMANTIC_LABELS"),
    ): register_panoptic,
    ("IMAGES", "SEMANTIC_LABELS", "CLASSES", "IGNORE_VALUE"): register_semantic,
}


def register_coco_format_datasets(entries: CfgNode) -> None:
    """Register the entries of ``DATASETS.COCO_FORMAT``, which ``config.py`` describes.

    An entry that is registered already, with the same files and classes, is left as it is.

    Raises:
        InputError: an entry lacks a key or has another, a value is of another kind, a path does not
            exist, or its name is taken by another dataset.
    """
    for name, entry in entries.items():
        where = f"DATASETS.COCO_FORMAT.{name}"
        if not isinstance(name, str):
            raise InputError(f"{where}: the name of a dataset must be a string")
        if not isinstance(entry, CfgNode):
            raise InputError(f"{where} is {shorten(entry)}, but needs keys: {_allowed()}")
        if unknown := [key for key in entry if key not in _ATTRIBUTES]:
            hint = did_you_mean(str(unknown[0]), _ATTRIBUTES)
            raise InputError(f"{where}.{unknown[0]} is no key{hint}; allowed are {_allowed()}")
        given = ({"IGNORE_VALUE": IGNORE_LABEL} if "CLASSES" in entry else {}) | entry
        register = next((_KINDS[keys] for keys in _KINDS if set(keys) == set(given)), None)
        if not register:
            found = f"{', '.join(entry)} alone" if entry else "no keys"
            raise InputError(f"{where} has {found}; it needs {_allowed()}")
        values = {_ATTRIBUTES[key]: _read(f"{where}.{key}", given[key]) for key in given}
        if name not in DatasetCatalog.list():
            register(name, **values)
            continue
        known = MetadataCatalog.get(name)
        if any(known.get(attribute) != value for attribute, value in values.items()):
            raise InputError(f"{where}: a dataset of that name exists; choose another name")


def _allowed() -> str:
    kinds = ", or ".join(", ".join(keys) for keys in _KINDS)
    return f"{kinds} ({IGNORE_LABEL} where it is left out)"


def _read(where: str, value: Any) -> Any:
    """The value of a key of an entry, a path resolved; InputError unless it is as it should be."""
    key = where.rpartition(".")[2]
    if key == "CLASSES":
        names = value if isinstance(value, (list, tuple)) else []
        if not names or not all(isinstance(name, str) for name in names):
            raise InputError(f"{where} {shorten(value)} must be a list of names, all strings")
        return list(names)
    if key == "IGNORE_VALUE":
        if type(value) is not int or not 0 <= value <= 255:
            raise InputError(f"{where} {shorten(value)} must be an integer from 0 to 255")
        return value
    if not isinstance(value, str):
        raise InputError(f"{where} {shorten(value)} must be a path, a string")
    path = str(datasets_root() / os.path.expanduser(value))
    exists, kind = (os.path.isfile, "file") if key in _FILES else (os.path.isdir, "folder")
    if not exists(path):
        raise InputError(f"{where}: {kind} {path!r} does not exist")
    return path
