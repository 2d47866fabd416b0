"""Making the label files that Detectron2 expects from those that datasets come with.

Files that exist are kept, and a file appears under its name only when it is complete, so a run
that was interrupted is continued by starting it again.
"""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import InputError, first_few
from .json_files import read_json
from .label_files import IGNORE_LABEL, image_size, read_label
from .panoptic_files import read_segment_ids

logger = logging.getLogger(__name__)

ADE20K_SPLITS = ("training", "validation")
ADE20K_NUM_CLASSES = 150


def prepare_ade20k(root: Path, output: Path, workers: int) -> None:
    """Shift the labels of ADE20K (scene parsing, 150 classes) to those that Detectron2 trains on.

    Reads ``annotations/{training,validation}``, where classes are 1 to 150 and 0 is any other, and
    writes ``annotations_detectron2/{training,validation}``: 0 to 149, and 255 for any other.

    Args:
        root: the folder ADEChallengeData2016, as downloaded.
        output: the folder to hold annotations_detectron2; ``root``, or another if that may not be
            written.
        workers: number of processes.

    Raises:
        InputError: an image has no label file or the reverse; a label file cannot be read, is not
            of the size of its image or has values above 150; the output cannot be written.
    """
    jobs = {}
    for split in ADE20K_SPLITS:
        images = _files_by_stem(root / "images" / split, ".jpg")
        labels = _files_by_stem(root / "annotations" / split, ".png")
        for these, others, kind in ((images, labels, "label file"), (labels, images, "image")):
            alone = sorted(these.keys() - others.keys())
            if alone:
                raise InputError(
                    f"{root}: {len(alone)} of {len(these)} files have no {kind}, "
                    f"the first is {str(these[alone[0]])!r}"
                )
        for stem, label in labels.items():
            target = output / "annotations_detectron2" / split / label.name
            jobs[target] = partial(_shift_ade20k_label, images[stem], label)
    _make_labels(jobs, workers, "ADE20K labels")


def _shift_ade20k_label(image: Path, label: Path) -> np.ndarray:
    # In 8 bits, 0 - 1 is 255.
    return read_label(label, image_size(image), range(ADE20K_NUM_CLASSES + 1), None) - np.uint8(1)


def prepare_panoptic_stuff(root: Path, split: str, output: Path, workers: int) -> None:
    """Make the semantic labels that Panoptic FPN is trained on from COCO's panoptic labels.

    Reads ``annotations/panoptic_<split>.json`` and ``panoptic_<split>/``, and writes
    ``panoptic_stuff_<split>/``: 0 for every thing, 1 and up for stuff in the order of the category
    ids, 255 for void. For COCO these are the labels of Detectron2's ``prepare_panoptic_fpn.py``.

    Args:
        root: folder of a dataset in COCO's panoptic format.
        split: e.g. "train2017".
        output: the folder to hold panoptic_stuff_<split>; ``root``, or another if that may not be
            written.
        workers: number of processes.

    Raises:
        InputError: the JSON file is not as it should be; a PNG is missing, cannot be read, is not
            of the size in the JSON file or has ids that are not there; the output cannot be
            written.
    """
    json_file = root / "annotations" / f"panoptic_{split}.json"
    annotations = _read_panoptic_json(json_file)
    folder = root / f"panoptic_{split}"
    # By their very names: a path that leads elsewhere is none of them.
    present = {path.name for path in _files_by_stem(folder, ".png").values()}
    missing = [file for file in annotations if file not in present]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(annotations)} files of {str(json_file)!r} are missing, "
            f"the first is {str(folder / str(missing[0]))!r}"
        )
    name = f"panoptic_stuff_{split}"
    jobs = {
        output / name / file: partial(_make_stuff_label, folder / file, size, labels)
        for file, (size, labels) in annotations.items()
    }
    _make_labels(jobs, workers, name)


def _read_panoptic_json(json_file: Path) -> dict[str, tuple[tuple[int, int], dict[int, int]]]:
    """For each panoptic PNG, its (width, height) and the semantic label of each segment id."""
    content = read_json(json_file)
    try:
        sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
        labels = _stuff_labels(json_file, content["categories"])
        result = {}
        for annotation in content["annotations"]:
            file, image_id = annotation["file_name"], annotation["image_id"]
            if image_id not in sizes:
                raise InputError(f"{str(json_file)!r}: {file} is of image {image_id}, not listed")
            kinds = {s["id"]: s["category_id"] for s in annotation["segments_info"]}
            unknown = sorted(set(kinds.values()) - labels.keys())
            if unknown:
                raise InputError(
                    f"{str(json_file)!r}: {file} has segments of the categories "
                    f"{first_few(unknown)}, not listed"
                )
            result[file] = sizes[image_id], {i: labels[kind] for i, kind in kinds.items()}
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{str(json_file)!r} is not in COCO's panoptic format: {type(error).__name__}: {error}"
        ) from error
    return result


def _stuff_labels(json_file: Path, categories: list[dict[str, Any]]) -> dict[int, int]:
    """The semantic label of each category id."""
    stuff = sorted(category["id"] for category in categories if not category["isthing"])
    if len(stuff) >= IGNORE_LABEL:
        raise InputError(
            f"{str(json_file)!r} has {len(stuff)} kinds of stuff; labels of 8 bits allow 254"
        )
    things = dict.fromkeys((category["id"] for category in categories if category["isthing"]), 0)
    return things | {category_id: label for label, category_id in enumerate(stuff, start=1)}


def _make_stuff_label(panoptic: Path, size: tuple[int, int], labels: dict[int, int]) -> np.ndarray:
    """The label of each pixel of a panoptic PNG, given the label of each segment id."""
    ids, places = np.unique(read_segment_ids(panoptic, size, labels), return_inverse=True)
    known = {0: IGNORE_LABEL} | labels
    return np.array([known[segment_id] for segment_id in ids.tolist()], np.uint8)[places]


def _files_by_stem(folder: Path, suffix: str) -> dict[str, Path]:
    try:
        return {path.stem: path for path in folder.iterdir() if path.suffix == suffix}
    except OSError as error:
        raise InputError(f"folder {str(folder)!r} cannot be read: {error.strerror}") from error


def _make_labels(
    jobs: dict[Path, Callable[[], np.ndarray]], workers: int, description: str
) -> None:
    """Write the file of every job that is not there yet, in parallel, until one fails."""
    if workers < 1:
        raise InputError(f"the number of workers must be at least 1, not {workers}")
    todo = {target: make for target, make in jobs.items() if not target.exists()}
    for folder in {target.parent for target in todo}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{str(folder)!r} cannot be made: {error.strerror}") from error
    logger.info("%s: %d files to make, %d exist", description, len(todo), len(jobs) - len(todo))
    with ProcessPoolExecutor(workers) as pool:
        made = pool.map(_write_label, todo.keys(), todo.values(), chunksize=16)
        for _ in tqdm(made, desc=description, total=len(todo), unit="file"):
            pass


def _write_label(target: Path, make: Callable[[], np.ndarray]) -> None:
    label = Image.fromarray(make())
    # Not ending in .png, lest it be taken for a label file.
    unfinished = target.with_name(f"{target.name}.{os.getpid()}.unfinished")
    try:
        label.save(unfinished, format="PNG")
        unfinished.replace(target)
    except OSError as error:
        raise InputError(f"{str(target)!r} cannot be written: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
