"""Checks of what a run was given, made before any long work starts."""

import difflib
import json
import logging
import os
import tempfile
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.solver import build_optimizer
from tqdm import tqdm

from ..data.coco_annotations import check_coco_annotations
from ..data.label_files import image_size, read_label
from ..errors import InputError
from ..evaluation.build import evaluated_tasks, predicted_tasks
from .config_merge import config_items
from .launch import find_processes

logger = logging.getLogger(__name__)

GPU_NORMS = ("SyncBN", "nnSyncBN")
"""Detectron2's names of torch.nn.SyncBatchNorm, which among several processes is for GPUs alone."""


def check_processes(cfg: CfgNode, args: Namespace) -> None:
    """Raise InputError unless this machine can run the processes that are asked for.

    Args:
        cfg: the run's config.
        args: of Detectron2's argument parser.
    """
    processes = find_processes(args)
    if processes.by_torchrun:
        source = f"torchrun --nproc-per-node {processes.per_machine}"
        if args.num_gpus != 1 or args.num_machines != 1:
            raise InputError(
                "torchrun starts the processes: leave --num-gpus and --num-machines away"
            )
    else:
        source = f"--num-gpus {args.num_gpus}"
        _check_machines(args)
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cuda":
        available = torch.cuda.device_count()
        if processes.per_machine > available:
            raise InputError(f"{source}: this machine has {available} usable GPUs")
        if processes.total > 1 and device.index is not None:
            raise InputError(
                f"MODEL.DEVICE {cfg.MODEL.DEVICE!r} is one GPU: with {processes.total} processes "
                "it must be cuda, and each takes its own"
            )
    elif processes.total > 1:
        synchronised = [key for key, value in config_items(cfg) if value in GPU_NORMS]
        if synchronised:
            raise InputError(
                f"{synchronised[0]} {GPU_NORMS[0]} needs GPUs where there are several processes, "
                "and MODEL.DEVICE is cpu: naiveSyncBN runs there too"
            )


def _check_machines(args: Namespace) -> None:
    """Raise InputError unless ``--num-gpus``, ``--num-machines`` and its like fit each other."""
    for option, value in (("--num-gpus", args.num_gpus), ("--num-machines", args.num_machines)):
        if value < 1:
            raise InputError(f"{option} {value}: must be at least 1")
    if not 0 <= args.machine_rank < args.num_machines:
        raise InputError(
            f"--machine-rank {args.machine_rank}: with --num-machines {args.num_machines} it is "
            f"0 to {args.num_machines - 1}"
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        raise InputError(
            f"--num-machines {args.num_machines} needs --dist-url tcp://HOST:PORT, on each machine "
            "the same: an address of the machine of rank 0 and a free port there"
        )


def check_solver(cfg: CfgNode, num_processes: int) -> None:
    """Raise InputError unless the processes can share out a batch.

    Args:
        cfg: the run's config.
        num_processes: on all machines.
    """
    solver = cfg.SOLVER
    steps, reference = solver.ACCUMULATION_STEPS, solver.REFERENCE_WORLD_SIZE
    if reference and solver.IMS_PER_BATCH % reference:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} is not a multiple of "
            f"SOLVER.REFERENCE_WORLD_SIZE {reference}"
        )
    batch = solver.IMS_PER_BATCH // reference * num_processes if reference else solver.IMS_PER_BATCH
    if batch < 1 or batch % (num_processes * steps):
        raise InputError(
            f"SOLVER.IMS_PER_BATCH {batch} must be a multiple of the number of processes, "
            f"{num_processes}, times SOLVER.ACCUMULATION_STEPS {steps}"
        )


def check_output(folder: str) -> None:
    """Make a folder for output, and raise InputError unless files can be written in it."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise InputError(
            f"OUTPUT_DIR {folder!r} cannot be written: {error.strerror or error}"
        ) from error


def check_model(cfg: CfgNode) -> None:
    """Raise InputError unless the config's model, optimizer and schedule can be built."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"  # where building it costs a second and no memory that counts
    try:
        build_lr_scheduler(cfg, build_optimizer(cfg, build_model(cfg)))
    except InputError:
        raise
    # What Detectron2's builders raise for names that they do not know and values that do not fit.
    except (
        ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError,
        RuntimeError, TypeError, ValueError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())
        raise InputError(
            f"the config's model cannot be built: {type(error).__name__}: {reason}"
        ) from error


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
