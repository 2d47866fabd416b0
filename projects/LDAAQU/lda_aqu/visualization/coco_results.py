"""Saved detections, in the COCO results format that Detectron2's COCOEvaluator writes."""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances

from ..errors import InputError


class CocoResults:
    """The detections of a ``coco_instances_results.json``, by image.

    Args:
        path: a JSON list of ``{"image_id", "category_id", "score", "bbox" (x, y, width, height),
            "segmentation" (RLE, in all or in none)}``.
        dataset_dicts: the images of the dataset, in Detectron2's format.
        metadata: of the dataset: its ``thing_dataset_id_to_contiguous_id`` maps the file's
            category ids to class indices.

    Raises:
        InputError: the file is not of that format, or names an image or a category that the
            dataset does not have.
    """

    def __init__(
        self, path: str | Path, dataset_dicts: Sequence[dict[str, Any]], metadata: Metadata
    ):
        self._path = path
        self._class_of_category = metadata.get("thing_dataset_id_to_contiguous_id")
        if self._class_of_category is None:
            raise InputError(f"dataset '{metadata.name}' has no instances: {path} cannot be its")
        images = {image["image_id"] for image in dataset_dicts}
        self._detections: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
        for index, detection in enumerate(_read_list(path)):
            where = f"{path}: result {index}"
            _check_detection(detection, where)
            image_id, category_id = detection["image_id"], detection["category_id"]
            if image_id not in images:
                raise InputError(f"{where}: no image {image_id!r} in dataset '{metadata.name}'")
            if category_id not in self._class_of_category:
                known = ", ".join(map(str, self._class_of_category))
                raise InputError(
                    f"{where}: no category {category_id!r} in dataset '{metadata.name}' "
                    f"(it has {known})"
                )
            self._detections[image_id].append(detection)

    def predict(self, dataset_dict: dict[str, Any]) -> dict[str, Instances]:
        """Return one image's detections as a model would, none where the file has none.

        Args:
            dataset_dict: the image, with its "image_id", "height" and "width".

        Returns:
            "instances" with ``pred_boxes`` (N, 4) in absolute x0, y0, x1, y1, ``scores`` (N,),
            ``pred_classes`` (N,) and, where the file has masks, ``pred_masks`` (N, H, W) bool.

        Raises:
            InputError: a mask is damaged, or is not of the image's size.
        """
        image_id = dataset_dict["image_id"]
        size = (dataset_dict["height"], dataset_dict["width"])
        detections = self._detections.get(image_id, [])
        boxes = np.array([d["bbox"] for d in detections], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        classes = [self._class_of_category[d["category_id"]] for d in detections]
        instances = Instances(
            size,
            pred_boxes=Boxes(boxes),
            scores=torch.tensor([float(d["score"]) for d in detections]),
            pred_classes=torch.tensor(classes, dtype=torch.int64),
        )
        masks = [self._decode(d["segmentation"], d) for d in detections if d.get("segmentation")]
        if masks:
            if {mask.shape for mask in masks} != {size} or len(masks) != len(detections):
                raise InputError(
                    f"{self._path}: image {image_id!r} needs a mask of {size[0]}x{size[1]} "
                    "(height x width) for every result or for none"
                )
            instances.pred_masks = torch.from_numpy(np.stack(masks)).bool()
        return {"instances": instances}

    def _decode(self, rle: Any, detection: dict[str, Any]) -> np.ndarray:
        try:
            return mask_util.decode(rle)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{self._path}: a segmentation of image {detection['image_id']!r} "
                f"is not a compressed RLE: {error}"
            ) from error


def _read_list(path: str | Path) -> list[Any]:
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, list):
        raise InputError(f"{path} is not COCO results: a {type(content).__name__}, not a list")
    return content


def _check_detection(detection: Any, where: str) -> None:
    needed = {"image_id": (int, str), "category_id": int, "score": (int, float), "bbox": list}
    if not isinstance(detection, dict):
        raise InputError(f"{where} is not an object: {detection!r:.80}")
    for key, kind in needed.items():
        if not isinstance(detection.get(key), kind):
            raise InputError(f"{where}: '{key}' missing or wrong: {detection.get(key)!r:.80}")
    numbers = [*detection["bbox"], detection["score"]]
    if len(numbers) != 5 or not all(_is_finite(number) for number in numbers):
        raise InputError(
            f"{where}: not four finite box numbers and a finite score: "
            f"{detection['bbox']!r:.80}, {detection['score']!r}"
        )


def _is_finite(number: Any) -> bool:
    return isinstance(number, (int, float)) and math.isfinite(number)
