"""Checks of the datasets of a run, made before any long work starts."""

import logging
import os
from operator import attrgetter
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge

from ..data.check_each import SECONDS, check_each
from ..data.coco_annotations import check_coco_annotations
from ..data.images import is_deep
from ..data.label_files import UnreadableImageError, image_size, read_header, read_label
from ..data.loaders import EvaluationLoader
from ..data.paths import datasets_root
from ..data.records import Record, check_dataset_name, check_objects, load_records
from ..errors import InputError
from ..evaluation.build import build_evaluators, evaluated_tasks, predicted_tasks

logger = logging.getLogger(__name__)

Classes = dict[str, tuple[str, list[str]]]
"""By ``thing_classes`` and ``stuff_classes``: a dataset that has been checked, and its classes."""


def check_datasets(cfg: CfgNode, *, train: bool) -> None:
    """Check the datasets of a run: registered, readable, files present, classes as the model's.

    What is checked is what ``MODEL.META_ARCHITECTURE`` learns from: instances, semantic labels, or
    both. Each annotation goes through the calls that training makes, the ground truth of test
    datasets through their evaluators as if it had been predicted, in child processes: all of them,
    or as many as these manage in SECONDS. Every semantic label file is read.

    Args:
        cfg: the run's config.
        train: check ``DATASETS.TRAIN`` as well as ``DATASETS.TEST``, which then may be empty.

    Raises:
        InputError: names the dataset, the file or the key, and what to set.
    """
    key, purpose = ("TRAIN", "train on") if train else ("TEST", "evaluate on")
    if not cfg.DATASETS[key]:
        raise InputError(f"DATASETS.{key} is empty: name a dataset to {purpose}")
    classes: Classes = {}
    if train:
        records = []
        for name in cfg.DATASETS.TRAIN:
            check_dataset_name(name, "DATASETS.TRAIN")
            records += _check_dataset(cfg, name, classes, evaluated=False)
        if "instances" in predicted_tasks(cfg) and not any(map(_has_object, records)):
            raise InputError(
                f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)}: there is nothing to learn, as no "
                "image has an annotation of some size that is no crowd"
            )
    for name in cfg.DATASETS.TEST:
        check_dataset_name(name, "DATASETS.TEST")
        _check_dataset(cfg, name, classes, evaluated=True)


def first_test_images(cfg: CfgNode, limit: int) -> EvaluationLoader:
    """A loader of the first ``limit`` images of the first test dataset, after its checks.

    Raises:
        InputError: ``limit`` is below 1, or see :func:`check_datasets`.
    """
    if limit < 1:
        raise InputError(f"--limit {limit}: must be at least 1")
    check_datasets(cfg, train=False)
    return EvaluationLoader(cfg, cfg.DATASETS.TEST[0], limit)


def _has_object(record: Record) -> bool:
    return any(not a.get("iscrowd", 0) and min(a["bbox"][2:]) > 0 for a in record["annotations"])


def _check_dataset(cfg: CfgNode, name: str, classes: Classes, *, evaluated: bool) -> list[Record]:
    metadata = MetadataCatalog.get(name)
    tasks = evaluated_tasks(cfg, name) if evaluated else predicted_tasks(cfg)
    # A panoptic model is trained on instances and semantic labels: its own are for evaluation.
    panoptic = evaluated and "panoptic_seg" in tasks

    _check_paths(name, metadata, panoptic=panoptic)
    if metadata.get("evaluator_type") != "sem_seg" and metadata.get("json_file"):
        check_coco_annotations(name, metadata.json_file, evaluated=evaluated)
    records = load_records(name)
    _check_images(cfg, name, records, evaluated=evaluated)
    if "instances" in tasks:
        _check_instances(cfg, name, records, classes, evaluated=evaluated)
    if "sem_seg" in tasks:
        _check_semantic(cfg, name, metadata, records, classes)
    if evaluated:
        _check_evaluation(cfg, name, records)
    logger.info("Checked dataset %s: %d images", name, len(records))
    return records


def _check_paths(name: str, metadata: Metadata, *, panoptic: bool) -> None:
    """Raise InputError unless the files and folders that the dataset is registered with exist."""
    # Of a panoptic dataset, Detectron2's loader lists the semantic labels, whatever the model.
    attributes = ["json_file", "image_root", "sem_seg_root"]
    for attribute in attributes + ["panoptic_json", "panoptic_root"] * panoptic:
        path = metadata.get(attribute)
        if path and not os.path.exists(path):
            is_set = "set" if "DETECTRON2_DATASETS" in os.environ else "not set"
            tools = "; tools/prepare_*.py make labels of COCO and ADE20K"
            raise InputError(
                f"dataset {name}: {attribute} {path!r} does not exist; the built-in datasets are "
                f"looked for in {str(datasets_root())!r} (DETECTRON2_DATASETS is {is_set}): see "
                f"docs/training.md{tools if attribute == 'sem_seg_root' else ''}"
            )


def _check_instances(
    cfg: CfgNode, name: str, records: list[Record], classes: Classes, *, evaluated: bool
) -> None:
    """Raise InputError unless there are instances, with masks and classes as the model's."""
    architecture = cfg.MODEL.META_ARCHITECTURE
    if "annotations" not in records[0]:
        raise InputError(f"dataset {name} has no instances, which {architecture} needs")
    key = "RETINANET" if architecture == "RetinaNet" else "ROI_HEADS"
    _check_classes(cfg, name, "thing_classes", f"MODEL.{key}.NUM_CLASSES", classes)
    annotated = [(record, a) for record in records for a in record["annotations"]]
    objects = [(record, a) for record, a in annotated if not a.get("iscrowd", 0)]
    if evaluated and annotated and not objects:
        raise InputError(f"dataset {name}: there is nothing to find, as all annotations are crowds")
    mask_format = ("bitmask" if evaluated else cfg.INPUT.MASK_FORMAT) if cfg.MODEL.MASK_ON else None

    check_objects(name, objects, mask_format)


def _check_evaluation(cfg: CfgNode, name: str, records: list[Record]) -> None:
    """Raise InputError unless the ground truth, as a prediction, is found by each evaluator."""
    evaluators = build_evaluators(cfg, name)
    if "panoptic_seg" in evaluators:
        extra = evaluators["panoptic_seg"].image_ids - {record["image_id"] for record in records}
        if extra:
            raise InputError(
                f"dataset {name}: {MetadataCatalog.get(name).panoptic_json!r} has annotations of "
                f"{len(extra)} images that are not in it, the first is {min(extra)!r}"
            )
    for task in ("panoptic_seg", "instances"):  # of semantic labels, every file is read
        if task in evaluators:
            check = evaluators[task].check_ground_truth
            check_each(name, f"images ({task})", records, check, _image_name, seconds=SECONDS)


def _check_semantic(
    cfg: CfgNode, name: str, metadata: Metadata, records: list[Record], classes: Classes
) -> None:
    """Raise InputError unless every image has a label file that the model can be trained on."""
    if "sem_seg_file_name" not in records[0]:
        raise InputError(
            f"dataset {name} has no semantic labels, which {cfg.MODEL.META_ARCHITECTURE} needs"
        )
    head = cfg.MODEL.SEM_SEG_HEAD
    _check_classes(cfg, name, "stuff_classes", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", classes)
    ignored = metadata.get("ignore_label", head.IGNORE_VALUE)
    if ignored != head.IGNORE_VALUE:
        raise InputError(
            f"dataset {name} labels with {ignored} what is to be ignored, but "
            f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {head.IGNORE_VALUE}: set it {ignored}"
        )
    if metadata.get("sem_seg_root"):
        _check_pairs(name, metadata, records)

    # All are read, as a wrong one stops the training whenever its turn comes, which may be hours
    # later. It takes a core about 1.3 ms an image of 480 x 360.
    def check(record: Record) -> None:
        try:
            size = image_size(record["file_name"])
        except UnreadableImageError:
            return  # nor is it trained on: see _check_images, which has let it pass
        read_label(record["sem_seg_file_name"], size, range(head.NUM_CLASSES), ignored)

    check_each(
        name, "label files", records, check, lambda r: f"label file {r['sem_seg_file_name']!r}"
    )


def _check_pairs(name: str, metadata: Metadata, records: list[Record]) -> None:
    """Raise InputError unless images and labels have the same names.

    Detectron2's ``load_sem_seg`` leaves out what has no counterpart, or, where there are as many
    images as labels, pairs them in order whatever their names.
    """
    image_root, label_root = metadata.image_root, metadata.sem_seg_root
    image_suffix = Path(records[0]["file_name"]).suffix
    label_suffix = Path(records[0]["sem_seg_file_name"]).suffix
    images = {Path(file).stem for file in os.listdir(image_root) if file.endswith(image_suffix)}
    labels = {Path(file).stem for file in os.listdir(label_root) if file.endswith(label_suffix)}
    # With an annotation file, it says which of the images in the folder are in the dataset.
    wanted = {Path(r["file_name"]).stem for r in records} if metadata.get("json_file") else images
    for missing, of, folder, suffix in (
        (wanted - labels, wanted, label_root, label_suffix),
        (labels - images, labels, image_root, image_suffix),
    ):
        if missing:
            raise InputError(
                f"dataset {name}: {len(missing)} of {len(of)} files are missing in {folder!r}, "
                f"the first is {os.path.join(folder, min(missing) + suffix)!r}"
            )


def _check_images(cfg: CfgNode, name: str, records: list[Record], *, evaluated: bool) -> None:
    """Raise InputError unless the images are of the size that the annotations say, and of few bits.

    Only their headers are read. With ``DATALOADER.SKIP_UNREADABLE`` those that cannot be read are
    passed over, as they are in training.
    """
    skip = cfg.DATALOADER.SKIP_UNREADABLE and not evaluated
    kind = "TEST" if evaluated else "TRAIN"
    sides = np.atleast_1d(cfg.INPUT[f"MIN_SIZE_{kind}"]).tolist()
    longest = cfg.INPUT[f"MAX_SIZE_{kind}"]

    def check(record: Record) -> None:
        try:
            header = read_header(record["file_name"])
            is_deep(header, cfg.INPUT.VALUE_RANGE)
        except InputError:
            if skip and os.path.exists(record["file_name"]):
                return
            raise
        width, height = header.size
        expected = record.get("width", width), record.get("height", height)
        if (width, height) != expected:
            raise InputError(
                f"{_image_name(record)} has {width} x {height} pixels, by the annotations "
                f"{expected[0]} x {expected[1]}"
            )
        for side in sides:
            if side and 0 in ResizeShortestEdge.get_output_shape(height, width, side, longest):
                raise InputError(
                    f"{_image_name(record)}, {width} x {height}, has no pixel left in a direction "
                    f"where its longer side is at most INPUT.MAX_SIZE_{kind} {longest}"
                )

    check_each(name, "images", records, check, _image_name)


def _image_name(record: Record) -> str:
    return f"image file {record['file_name']!r}"


def _check_classes(cfg: CfgNode, name: str, kind: str, key: str, seen: Classes) -> None:
    """Raise InputError unless the classes are the model's, by the key, and those seen before."""
    classes = MetadataCatalog.get(name).get(kind)
    if classes is None:
        return
    node = attrgetter(key)(cfg)
    shown = ", ".join(map(str, classes[:5])) + (", ..." if len(classes) > 5 else "")
    if len(classes) != node:
        raise InputError(
            f"dataset {name} has {len(classes)} classes ({shown}) but {key} is {node}: "
            f"set {key} {len(classes)}"
        )
    if len({c for c in classes if isinstance(c, str)}) < len(classes):
        raise InputError(
            f"dataset {name}: each class needs a name of its own, a string, and they are {shown}"
        )
    other, expected = seen.setdefault(kind, (name, classes))
    for number, (mine, its) in enumerate(zip(classes, expected, strict=True)):
        if mine != its:
            raise InputError(
                f"datasets {other} and {name} have different classes: in the order of their ids, "
                f"number {number} is {its!r} and {mine!r}"
            )
