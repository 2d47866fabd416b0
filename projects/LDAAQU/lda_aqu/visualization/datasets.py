"""The images of a registered dataset, and the names of a model's classes."""

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog

from ..data.records import Record, check_dataset_name, check_objects, load_records


def load_dataset(name: str, where: str) -> tuple[list[Record], Metadata]:
    """Load a dataset: its images with their labels, in Detectron2's format, and its metadata.

    Args:
        name: its registered name.
        where: the option or config key that gave the name, for messages.

    Raises:
        InputError: it is not registered, or its files cannot be read, or an annotation cannot be
            drawn (see :func:`~lda_aqu.data.records.check_objects`).
    """
    check_dataset_name(name, where)
    records = load_records(name)
    check_objects(
        name, [(record, a) for record in records for a in record.get("annotations", ())], ""
    )
    return records, MetadataCatalog.get(name)


def class_metadata(cfg: CfgNode) -> Metadata:
    """Return the metadata of a config's test dataset, for the names and colours of its classes.

    It is loaded only where its names are known from its files alone. Without a test dataset the
    metadata is empty, and classes have no names.

    Raises:
        InputError: the dataset is not registered, or its files cannot be read.
    """
    if not cfg.DATASETS.TEST:
        return MetadataCatalog.get("__unnamed_classes")
    name = cfg.DATASETS.TEST[0]
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") or metadata.get("stuff_classes"):
        return metadata
    check_dataset_name(name, "DATASETS.TEST")
    load_records(name)
    return metadata
