"""Checks of the datasets of a run, made before any long work starts."""

import difflib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from tqdm import tqdm

from ..data.coco_annotations import check_coco_annotations
from ..data.label_files import image_size, read_label
from ..errors import InputError
from ..evaluation.build import evaluated_tasks, predicted_tasks

logger = logging.getLogger(__name__)


def check_datasets(cfg: CfgNode, *, train: bool) -> None:
    """Check the datasets of a run: registered, readable, files present, classes as the model's.

    What is checked is what ``MODEL.META_ARCHITECTURE`` learns from: instances, semantic labels, or
    both. Every semantic label file is read.

    Args:
        cfg: the run's config.
        train: check ``DATASETS.TRAIN`` as well as ``DATASETS.TEST``.

    Raises:
        InputError: names the dataset, the file or the key, and what to set.
    """
    keys = ["DATASETS.TRAIN"] * train + ["DATASETS.TEST"]
    for key in keys:
        names = getattr(cfg.DATASETS, key.split(".")[1])
        if key == "DATASETS.TRAIN" and not names:
            raise InputError("DATASETS.TRAIN is empty: name a dataset to train on")
        for name in names:
            check_dataset_name(name, key)
            _check_dataset(cfg, name, evaluated=key == "DATASETS.TEST")


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


def _check_dataset(cfg: CfgNode, name: str, *, evaluated: bool) -> None:
    metadata = MetadataCatalog.get(name)
    tasks = evaluated_tasks(cfg, name) if evaluated else predicted_tasks(cfg)
    # A panoptic model is trained on instances and semantic labels: its own are for evaluation.
    panoptic = evaluated and "panoptic_seg" in tasks

    _check_paths(name, metadata, panoptic=panoptic)
    records = load_records(name, evaluated=evaluated)
    _check_files(name, "image files", [record["file_name"] for record in records])
    _check_images(name, records, skip=cfg.DATALOADER.SKIP_UNREADABLE and not evaluated)
    if "instances" in tasks:
        _check_instances(cfg, name, metadata, records)
    if "sem_seg" in tasks:
        _check_semantic(cfg, name, metadata, records)
    if panoptic:
        _check_panoptic(name, metadata, records)
    logger.info("Checked dataset %s: %d images", name, len(records))


def _check_paths(name: str, metadata: Metadata, *, panoptic: bool) -> None:
    """Raise InputError unless the files and folders that the dataset is registered with exist."""
    kinds = {
        "json_file": "annotation file",
        "image_root": "image folder",
        # Of a panoptic dataset, too, Detectron2's loader lists it, whatever the model.
        "sem_seg_root": "folder of semantic labels",
    }
    if panoptic:
        kinds |= {
            "panoptic_json": "panoptic annotation file",
            "panoptic_root": "folder of panoptic labels",
        }
    for attribute, kind in kinds.items():
        path = metadata.get(attribute)
        if path and not os.path.exists(path):
            made = "; see tools/prepare_*.py" if attribute == "sem_seg_root" else ""
            raise InputError(
                f"dataset {name}: {kind} {path!r} does not exist "
                f"(DETECTRON2_DATASETS is {os.getenv('DETECTRON2_DATASETS', 'not set')!r}{made})"
            )


def load_records(name: str, *, evaluated: bool = False) -> list[dict[str, Any]]:
    """The images of a registered dataset with their labels, in Detectron2's format.

    Args:
        name: of the dataset.
        evaluated: its annotations are to be evaluated against.

    Raises:
        InputError: its files cannot be read, its annotations are wrong, or it has no images.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") in ("coco", "coco_panoptic_seg") and metadata.get(
        "json_file"
    ):
        try:
            check_coco_annotations(metadata.json_file, evaluated=evaluated)
        except InputError as error:
            raise InputError(f"dataset {name}: {error}") from error
    folder = metadata.get("sem_seg_root")
    source = metadata.get("json_file") or folder or name
    try:
        records = DatasetCatalog.get(name)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AssertionError) as error:
        key = str(error.args[0]) if isinstance(error, KeyError) else ""
        if folder and key.startswith(metadata.image_root):
            # How Detectron2 fails to merge instances with the semantic labels of an image.
            label = os.path.join(folder, Path(key).stem + ".png")
            missing = label if os.path.exists(key) else key
            raise InputError(f"dataset {name}: {missing!r} is missing") from error
        raise InputError(
            f"dataset {name}: {source!r} cannot be read: {type(error).__name__}: {error}"
        ) from error
    if not records:
        raise InputError(f"dataset {name} has no images ({source!r})")
    return records


def _check_files(name: str, kind: str, paths: list[str]) -> None:
    """Raise InputError if files are missing; one listing for each folder."""
    folders = defaultdict(set)
    for path in paths:
        folder, file = os.path.split(path)
        folders[folder].add(file)
    missing = []
    for folder, files in folders.items():
        present = os.listdir(folder) if os.path.isdir(folder) else ()
        missing += [os.path.join(folder, file) for file in sorted(files.difference(present))]
    if missing:
        raise InputError(
            f"dataset {name}: {len(missing)} of {len(paths)} {kind} are missing, "
            f"the first is {missing[0]!r}"
        )


def _check_instances(
    cfg: CfgNode, name: str, metadata: Metadata, records: list[dict[str, Any]]
) -> None:
    """Raise InputError unless there are instances, with masks and classes as the model's."""
    architecture = cfg.MODEL.META_ARCHITECTURE
    if "annotations" not in records[0]:
        raise InputError(f"dataset {name} has no instances, which {architecture} needs")
    key = "RETINANET" if architecture == "RetinaNet" else "ROI_HEADS"
    _check_classes(name, metadata.get("thing_classes"), cfg, f"MODEL.{key}.NUM_CLASSES")
    if cfg.MODEL.MASK_ON:
        _check_masks(name, records, cfg.INPUT.MASK_FORMAT)


def _check_masks(name: str, records: list[dict], mask_format: str) -> None:
    """Raise InputError if there are no masks, or RLEs and the format is not theirs."""
    objects = [a for r in records for a in r.get("annotations", ()) if not a.get("iscrowd", 0)]
    masks = [a["segmentation"] for a in objects if "segmentation" in a]
    if objects and not masks:
        raise InputError(f"dataset {name} has no masks: set MODEL.MASK_ON False")
    if mask_format == "polygon" and any(isinstance(mask, dict) for mask in masks):
        raise InputError(
            f"dataset {name} has RLE masks, and INPUT.MASK_FORMAT is 'polygon': "
            "set INPUT.MASK_FORMAT bitmask"
        )


def _check_semantic(
    cfg: CfgNode, name: str, metadata: Metadata, records: list[dict[str, Any]]
) -> None:
    """Raise InputError unless every image has a label file that the model can be trained on."""
    if "sem_seg_file_name" not in records[0]:
        raise InputError(
            f"dataset {name} has no semantic labels, which {cfg.MODEL.META_ARCHITECTURE} needs"
        )
    head = cfg.MODEL.SEM_SEG_HEAD
    _check_classes(name, metadata.get("stuff_classes"), cfg, "MODEL.SEM_SEG_HEAD.NUM_CLASSES")
    ignored = metadata.get("ignore_label", head.IGNORE_VALUE)
    if ignored != head.IGNORE_VALUE:
        raise InputError(
            f"dataset {name} labels with {ignored} what is to be ignored, but "
            f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {head.IGNORE_VALUE}: set it {ignored}"
        )
    if metadata.get("sem_seg_root"):
        _check_pairs(name, metadata, records)
    _check_files(name, "label files", [record["sem_seg_file_name"] for record in records])
    _check_labels(name, records, range(head.NUM_CLASSES), ignored)


def _check_pairs(name: str, metadata: Metadata, records: list[dict[str, Any]]) -> None:
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


def _check_images(name: str, records: list[dict[str, Any]], *, skip: bool) -> None:
    """Raise InputError unless the images are of the size that the annotations say.

    Only their headers are read. With ``skip`` those that cannot be read are passed over, as they
    are in training.
    """

    def check(record: dict[str, Any]) -> None:
        try:
            found = image_size(record["file_name"])
        except InputError:
            if skip:
                return
            raise
        expected = record.get("width", found[0]), record.get("height", found[1])
        if found != expected:
            raise InputError(
                f"image file {record['file_name']!r} has {found[0]} x {found[1]} pixels, "
                f"by the annotations {expected[0]} x {expected[1]}"
            )

    _check_each(name, "images", records, check)


def _check_labels(name: str, records: list[dict[str, Any]], classes: range, ignored: int) -> None:
    """Raise InputError if label files have another size than their image, or other values.

    All are read, as a wrong one stops the training whenever its turn comes, which may be hours
    later. It takes a core about 1.3 ms an image of 480 x 360, and threads share the work.
    """

    def check(record: dict[str, Any]) -> None:
        size = image_size(record["file_name"])
        read_label(record["sem_seg_file_name"], size, classes, ignored)

    _check_each(name, "label files", records, check)


def _check_each(
    name: str,
    kind: str,
    records: list[dict[str, Any]],
    check: Callable[[dict[str, Any]], None],
) -> None:
    """Call a check for every image of a dataset, and raise InputError with the first problem."""

    def problem(record: dict[str, Any]) -> str | None:
        try:
            check(record)
        except InputError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        results = pool.map(problem, records)
        bar = tqdm(
            results, f"{kind.capitalize()} of {name}", total=len(records), unit="file", delay=1
        )
        problems = [message for message in bar if message]
    if problems:
        raise InputError(
            f"dataset {name}: {len(problems)} of {len(records)} {kind} cannot be used, "
            f"the first: {problems[0]}"
        )


def _check_panoptic(name: str, metadata: Metadata, records: list[dict[str, Any]]) -> None:
    """Raise InputError unless every image has panoptic annotations and their PNG."""
    source = metadata.panoptic_json
    try:
        with open(source) as file:
            files = {a["image_id"]: a["file_name"] for a in json.load(file)["annotations"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"dataset {name}: {source!r} cannot be read: {type(error).__name__}: {error}"
        ) from error
    unlabelled = [r["file_name"] for r in records if r["image_id"] not in files]
    if unlabelled:
        raise InputError(
            f"dataset {name}: {source!r} has no annotation of {len(unlabelled)} of "
            f"{len(records)} images, the first is {unlabelled[0]!r}"
        )
    paths = [os.path.join(metadata.panoptic_root, files[r["image_id"]]) for r in records]
    _check_files(name, "panoptic label files", paths)


def _check_classes(name: str, classes: list[str] | None, cfg: CfgNode, key: str) -> None:
    """Raise InputError unless the model, by the config key, has as many classes as the dataset."""
    node = cfg
    for part in key.split("."):
        node = node[part]
    if classes is not None and len(classes) != node:
        shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
        raise InputError(
            f"dataset {name} has {len(classes)} classes ({shown}) but {key} is {node}: "
            f"set {key} {len(classes)}"
        )
