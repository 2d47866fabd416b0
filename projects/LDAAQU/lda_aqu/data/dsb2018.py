"""The dataset dsb2018: nuclei of the 2018 Data Science Bowl, in COCO's format."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import InputError, as_input_error
from ..files import atomic_write, make_folder
from .coco_masks import describe_mask, encode_mask
from .label_files import UNREADABLE, image_size

SIZE = (256, 256)
"""Of the images that are taken, 334 of stage1_train."""


def prepare_dsb2018(source: Path, output: Path) -> dict[str, int]:
    """Make the dataset from the download.

    Reads ``<id>/images/<id>.png`` and ``<id>/masks/*.png``, a nucleus each, and of the images of
    256 x 256, in the order of their ids, takes every fourth, the first among them, for validation.
    Writes ``images/``, each named by the first 16 characters of its id, and
    ``annotations/{train,val}.json``.

    Args:
        source: the folder stage1_train.
        output: the folder to make.

    Returns:
        the numbers of images of "train" and "val".

    Raises:
        InputError: a file that cannot be read or written, a mask that is empty or of another size
            than its image, or a folder without images of that size.
    """
    found = sorted(source.glob("*/images/*.png"))
    chosen = [path for path in found if image_size(path) == SIZE]
    if not chosen:
        raise InputError(
            f"{str(source)!r} has no images of 256 x 256, <id>/images/<id>.png: name stage1_train"
        )
    for folder in ("images", "annotations"):
        make_folder(output / folder, "output")
    splits: dict[str, dict[str, list[dict[str, Any]]]] = {
        split: {"images": [], "annotations": [], "categories": [{"id": 1, "name": "nucleus"}]}
        for split in ("train", "val")
    }
    for number, path in enumerate(tqdm(chosen, unit="image")):
        content = splits["train" if number % 4 else "val"]
        name, (width, height) = f"{path.stem[:16]}.png", SIZE
        with as_input_error(f"image {str(path)!r}", *UNREADABLE):
            Image.open(path).convert("RGB").save(output / "images" / name)
        image_id = len(content["images"]) + 1
        content["images"].append(
            {"id": image_id, "file_name": name, "width": width, "height": height}
        )
        for mask_file in sorted(path.parents[1].glob("masks/*.png")):
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": image_id, "category_id": 1}
                | _annotation(mask_file)
            )
    for split, content in splits.items():
        with atomic_write(output / "annotations" / f"{split}.json") as file:
            file.write(json.dumps(content).encode())
    return {split: len(content["images"]) for split, content in splits.items()}


def _annotation(mask_file: Path) -> dict[str, Any]:
    with as_input_error(f"mask {str(mask_file)!r}", *UNREADABLE):
        mask = np.asarray(Image.open(mask_file).convert("L")) > 0
        if mask.shape != SIZE[::-1] or not mask.any():
            raise ValueError(f"it is empty, or not {SIZE[0]} x {SIZE[1]}")
    return describe_mask(mask) | {"segmentation": encode_mask(mask)}
