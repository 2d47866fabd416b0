"""Saved detections, in the COCO results format that Detectron2's COCOEvaluator writes."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.structures import BoxMode, Instances

from ..data.json_files import read_json
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
        classes = metadata.get("thing_dataset_id_to_contiguous_id")
        if classes is None:
            raise InputError(f"dataset '{metadata.name}' has no instances: {path} cannot be its")
        results = read_json(path)
        if not isinstance(results, list):
            raise InputError(f"{path} is not COCO results: a {type(results).__name__}, not a list")
        images = {image["image_id"]: image for image in dataset_dicts}
        self._path = path
        self._detections: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
        for index, result in enumerate(results):
            try:
                image = images[result["image_id"]]
                detection = {
                    "bbox": result["bbox"],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": classes[result["category_id"]],
                    "score": result["score"],
                }
                annotations_to_instances([detection], (1, 1))
                if not np.isfinite([*result["bbox"], result["score"]]).all():
                    raise ValueError("a number is not finite")
                if mask := result.get("segmentation"):
                    # Or it would be decoded into memory of any size.
                    if mask["size"] != [image["height"], image["width"]]:
                        raise ValueError(f"its mask is of the size {mask['size']}")
                    detection["segmentation"] = mask
            except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
                raise InputError(
                    f"{path}: result {index}, {result!r:.100}, is no detection in an image of "
                    f"dataset '{metadata.name}': {type(error).__name__}: {error}"
                ) from error
            self._detections[result["image_id"]].append(detection)

    def predict(self, dataset_dict: dict[str, Any]) -> dict[str, Instances]:
        """Return one image's detections as a model would, none where the file has none.

        Args:
            dataset_dict: the image, with its "image_id", "height" and "width".

        Returns:
            "instances" with ``pred_boxes`` (N, 4) in absolute x0, y0, x1, y1, ``scores`` (N,),
            ``pred_classes`` (N,) and, where the file has masks, ``pred_masks`` (N, H, W) bool.

        Raises:
            InputError: a mask is damaged, or some detections have none.
        """
        detections = self._detections[dataset_dict["image_id"]]
        size = (dataset_dict["height"], dataset_dict["width"])
        try:
            truth = annotations_to_instances(detections, size, mask_format="bitmask")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{self._path}: the masks of image {dataset_dict['image_id']!r} cannot be used: "
                f"{type(error).__name__}: {error}"
            ) from error
        instances = Instances(
            size,
            pred_boxes=truth.gt_boxes,
            pred_classes=truth.gt_classes,
            scores=torch.tensor([float(detection["score"]) for detection in detections]),
        )
        if truth.has("gt_masks"):
            instances.pred_masks = truth.gt_masks.tensor
        return {"instances": instances}
