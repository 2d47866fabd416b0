"""Checks of what a run was given, made before any long work starts."""

import difflib
import logging
import os
from collections import defaultdict
from urllib.parse import urlparse

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import InputError

logger = logging.getLogger(__name__)


def check_processes(num_gpus: int, device: str) -> None:
    """Raise InputError unless this machine can run ``--num-gpus`` processes on ``device``."""
    available = torch.cuda.device_count()
    if num_gpus < 1:
        raise InputError(f"--num-gpus {num_gpus}: must be at least 1 (1 also where there is none)")
    if num_gpus > 1 and num_gpus > available:
        raise InputError(
            f"--num-gpus {num_gpus}: this machine has {available} usable GPUs; "
            "leave the option away to run one process"
        )
    if num_gpus > 1 and not device.startswith("cuda"):
        raise InputError(f"--num-gpus {num_gpus} needs MODEL.DEVICE cuda, and it is {device!r}")


def check_weights(cfg: CfgNode) -> None:
    """Raise InputError if ``MODEL.WEIGHTS`` is a local file that does not exist.

    Whether they fit the model is seen when :class:`~lda_aqu.engine.Checkpointer` loads them.
    """
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        logger.warning("MODEL.WEIGHTS is empty: the model starts from random weights")
    elif urlparse(weights).scheme == "" and not os.path.isfile(weights.partition("?")[0]):
        raise InputError(f"MODEL.WEIGHTS {weights!r} does not exist")


def check_datasets(cfg: CfgNode, *, train: bool) -> None:
    """Check the datasets of a run: registered, readable, images present, classes as the model's.

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
            _check_dataset(cfg, name)


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


def _check_dataset(cfg: CfgNode, name: str) -> None:
    metadata = MetadataCatalog.get(name)
    for attribute, kind in (("json_file", "annotation file"), ("image_root", "image folder")):
        path = metadata.get(attribute)
        if path and not os.path.exists(path):
            raise InputError(
                f"dataset {name}: {kind} {path!r} does not exist "
                f"(DETECTRON2_DATASETS is {os.getenv('DETECTRON2_DATASETS', 'not set')!r})"
            )
    try:
        records = DatasetCatalog.get(name)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AssertionError) as error:
        source = metadata.get("json_file", name)
        raise InputError(
            f"dataset {name}: {source!r} cannot be read: {type(error).__name__}: {error}"
        ) from error
    if not records:
        raise InputError(f"dataset {name} has no images ({metadata.get('json_file', '')})")
    _check_images(name, [record["file_name"] for record in records])
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        _check_classes(name, metadata.get("thing_classes"), cfg, "MODEL.RETINANET.NUM_CLASSES")
    else:
        _check_classes(name, metadata.get("thing_classes"), cfg, "MODEL.ROI_HEADS.NUM_CLASSES")
    if cfg.MODEL.MASK_ON:
        _check_masks(name, records, cfg.INPUT.MASK_FORMAT)
    logger.info("Checked dataset %s: %d images", name, len(records))


def _check_images(name: str, paths: list[str]) -> None:
    """Raise InputError if image files are missing; one listing for each folder."""
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
            f"dataset {name}: {len(missing)} of {len(paths)} image files are missing, "
            f"the first is {missing[0]!r}"
        )


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
