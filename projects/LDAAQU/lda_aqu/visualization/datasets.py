"""The images of a registered dataset, and the names of a model's classes."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog

from ..data.records import check_dataset_name, load_records


def load_dataset(name: str, where: str) -> tuple[list[dict[str, Any]], Metadata]:
    """Load a dataset: its images with their labels, in Detectron2's format, and its metadata.

    Args:
        name: its registered name.
        where: the option or config key that gave the name, for messages.

    Raises:
        InputError: it is not registered, or its files cannot be read.
    """
    check_dataset_name(name, where)
    return load_records(name), MetadataCatalog.get(name)


def class_metadata(cfg: CfgNode) -> Metadata:
    """Return the metadata of a config's test dataset, for the names and colours of its classes.

    It is loaded only where its names are known from its files alone. Without a test dataset the
    metadata is empty, and classes have no names.

    Raises:
        InputError: see :func:`load_dataset`.
    """
    if not cfg.DATASETS.TEST:
        return MetadataCatalog.get("__unnamed_classes")
    name = cfg.DATASETS.TEST[0]
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") or metadata.get("stuff_classes"):
        return metadata
    return load_dataset(name, "DATASETS.TEST")[1]
