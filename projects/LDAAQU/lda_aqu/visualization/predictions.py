"""What a model predicts for an image, drawn on it, and the ground truth drawn the same way.

Images are RGB, uint8, (H, W, 3), and so are the pictures, except that small images are enlarged s
times, s the least integer that brings the shorter side to ``MIN_SIDE``, so that labels are legible,
but no side beyond ``MAX_SIDE``.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import Metadata
from detectron2.structures import BitMasks, BoxMode, Instances, polygons_to_bitmask
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer

from ..data.images import read_image_file
from ..data.label_files import UnreadableImageError
from ..data.panoptic_files import rgb2id
from ..errors import InputError

MIN_SIDE = 360  # pixels
MAX_SIDE = 8192
OPACITY = 0.5

# Keys of a Detectron2 model's output, from the one that says most.
_KINDS = ("panoptic_seg", "instances", "sem_seg")

_NO_STUFF = 255

# Detectron2's colours without the dark and the grey, which are lost on microscopy.
_PALETTE = colormap(rgb=True, maximum=1)
_PALETTE = _PALETTE[(_PALETTE.max(axis=1) > 0.5) & (np.ptp(_PALETTE, axis=1) > 0.3)]


class _Things(NamedTuple):
    """N instances: (N, 4) absolute x0, y0, x1, y1; (H, W) bool masks of all or none; classes."""

    boxes: np.ndarray
    masks: Sequence[np.ndarray]
    classes: Sequence[int]
    remarks: Sequence[str]  # beside the class on the label; "" for none


_NO_THINGS = _Things(boxes=np.empty((0, 4)), masks=(), classes=(), remarks=())


def prediction_kind(predictions: dict[str, Any]) -> str:
    """Return which of a model's outputs is drawn: "panoptic_seg", else "instances", "sem_seg"."""
    return next(kind for kind in _KINDS if kind in predictions)


def draw_predictions(
    image: np.ndarray,
    predictions: dict[str, Any],
    metadata: Metadata,
    score_threshold: float = 0.5,
) -> np.ndarray:
    """Draw a model's output for one image, that of :func:`prediction_kind`.

    Args:
        image: the image.
        predictions: a Detectron2 model's output for it. Of "instances", ``pred_boxes``,
            ``pred_classes``, ``scores`` and, where there are, ``pred_masks`` (N, H, W) are drawn.
        metadata: the names and colours of the classes. Instances are coloured by class where it
            has ``thing_colors``, else each in its own colour.
        score_threshold: instances that score less, in [0, 1], are left out. Segments of a panoptic
            or semantic prediction are all drawn.

    Returns:
        The picture.

    Raises:
        InputError: a predicted class is not in the metadata.
    """
    kind = prediction_kind(predictions)
    if kind == "panoptic_seg":
        segment_ids, segments = predictions[kind]
        things, stuff = _split_segments(segment_ids.cpu().numpy(), segments)
        return _draw(image, metadata, things=things, stuff=stuff)
    if kind == "instances":
        instances = predictions[kind].to("cpu")
        things = _from_instances(instances[instances.scores >= score_threshold])
        return _draw(image, metadata, things=things)
    return _draw(image, metadata, stuff=predictions[kind].argmax(dim=0).cpu().numpy())


def draw_ground_truth(
    image: np.ndarray, dataset_dict: dict[str, Any], metadata: Metadata, kind: str
) -> np.ndarray | None:
    """Draw the labels that a prediction is to be compared with.

    Args:
        image: the image.
        dataset_dict: its labels, in Detectron2's format. Those of "panoptic_seg" are
            ``pan_seg_file_name`` with ``segments_info``; or ``annotations`` with
            ``sem_seg_file_name`` where 0 is any thing, the "separated" form of Panoptic FPN.
        metadata: the names and colours of the classes.
        kind: of the prediction, see :func:`prediction_kind`.

    Returns:
        The picture, or None where the dataset has no labels of that kind.

    Raises:
        UnreadableImageError: a label file cannot be read, or is not of the image's size.
    """
    things, stuff = _NO_THINGS, None
    if kind == "panoptic_seg" and "pan_seg_file_name" in dataset_dict:
        rgb = _read_labels(dataset_dict["pan_seg_file_name"], image)
        things, stuff = _split_segments(rgb2id(rgb), dataset_dict["segments_info"])
    elif kind == "panoptic_seg" and {"annotations", "sem_seg_file_name"} <= dataset_dict.keys():
        things = _from_annotations(dataset_dict["annotations"], image)
        stuff = _read_labels(dataset_dict["sem_seg_file_name"], image)
        stuff = np.where(stuff == 0, _NO_STUFF, stuff)
    elif kind == "instances" and "annotations" in dataset_dict:
        things = _from_annotations(dataset_dict["annotations"], image)
    elif kind == "sem_seg" and "sem_seg_file_name" in dataset_dict:
        stuff = _read_labels(dataset_dict["sem_seg_file_name"], image)
        stuff = np.where(stuff == metadata.get("ignore_label"), _NO_STUFF, stuff)
    else:
        return None
    return _draw(image, metadata, things=things, stuff=stuff)


def _from_instances(instances: Instances) -> _Things:
    return _Things(
        boxes=instances.pred_boxes.tensor.numpy(),
        masks=instances.pred_masks.numpy() if instances.has("pred_masks") else (),
        classes=instances.pred_classes.tolist(),
        remarks=[f"{score:.0%}" for score in instances.scores.tolist()],
    )


def _from_annotations(annotations: Sequence[dict[str, Any]], image: np.ndarray) -> _Things:
    boxes = [
        BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        for annotation in annotations
    ]
    return _Things(
        boxes=np.array(boxes).reshape(-1, 4),
        masks=[_to_mask(annotation.get("segmentation"), image) for annotation in annotations],
        classes=[annotation["category_id"] for annotation in annotations],
        remarks=["crowd" if annotation.get("iscrowd") else "" for annotation in annotations],
    )


def _to_mask(segmentation: dict | list | None, image: np.ndarray) -> np.ndarray:
    """Turn an RLE or polygons into a bool mask; an empty one where a dataset has boxes only."""
    if not segmentation:
        return np.zeros(image.shape[:2], dtype=bool)
    if isinstance(segmentation, dict):
        return mask_util.decode(segmentation).astype(bool)
    return polygons_to_bitmask(segmentation, *image.shape[:2])


def _split_segments(
    segment_ids: np.ndarray, segments: Sequence[dict[str, Any]]
) -> tuple[_Things, np.ndarray]:
    """Split panoptic segments, {"id", "category_id", "isthing"[, "score"]}, of (H, W) ids."""
    stuff = np.full(segment_ids.shape, _NO_STUFF)
    things = []
    for segment in segments:
        if segment["isthing"]:
            things.append(segment)
        else:
            stuff[segment_ids == segment["id"]] = segment["category_id"]
    masks = segment_ids == np.array([thing["id"] for thing in things]).reshape(-1, 1, 1)
    return _Things(
        boxes=BitMasks(torch.from_numpy(masks)).get_bounding_boxes().tensor.numpy(),
        masks=masks,
        classes=[thing["category_id"] for thing in things],
        remarks=[f"{thing['score']:.0%}" if "score" in thing else "" for thing in things],
    ), stuff


def _read_labels(path: str, image: np.ndarray) -> np.ndarray:
    labels = read_image_file(path, None)
    if labels.shape[:2] != image.shape[:2]:
        raise UnreadableImageError(
            f"labels {path} are {labels.shape[:2]}, their image is {image.shape[:2]}"
        )
    return labels


def _draw(
    image: np.ndarray,
    metadata: Metadata,
    things: _Things = _NO_THINGS,
    stuff: np.ndarray | None = None,
) -> np.ndarray:
    """Draw instances, and (H, W) class indices of which those beyond the classes are left out."""
    labels = _labels(things, metadata)
    by_class = metadata.get("thing_colors")
    colors = [
        _color(by_class, index if by_class else instance)
        for instance, index in enumerate(things.classes)
    ]
    outlined = list(zip(things.masks, colors, strict=False))  # no masks: none
    regions = [] if stuff is None else _regions(stuff, metadata)

    # Pixel by pixel: Visualizer would fill holes, and leave lines one pixel wide empty.
    image = image.copy()
    for mask, color in [(mask, color) for mask, color, _ in regions] + outlined:
        image[mask] = (1 - OPACITY) * image[mask] + OPACITY * 255 * color

    height, width = image.shape[:2]
    scale = min(math.ceil(MIN_SIDE / min(height, width)), MAX_SIDE // max(height, width))
    visualizer = Visualizer(image, metadata, scale=max(1, scale))
    for mask, color, name in regions:
        visualizer.draw_binary_mask(mask, color, text=name, alpha=0)
    for mask, color in outlined:
        _outline(visualizer, mask, color)
    visualizer.overlay_instances(boxes=things.boxes, labels=labels, assigned_colors=colors)
    return visualizer.get_output().get_image()


def _outline(visualizer: Visualizer, mask: np.ndarray, color: np.ndarray) -> None:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for contour in contours:
        visualizer.draw_polygon(contour[:, 0] + 0.5, color, alpha=0)  # to pixel centres


def _color(colors: Sequence[Sequence[int]] | None, index: int) -> np.ndarray:
    """Return an RGB colour in [0, 1]: of a dataset's own (0..255), or of the palette."""
    if colors:
        return np.array(colors[index]) / 255
    return _PALETTE[index % len(_PALETTE)]


def _regions(stuff: np.ndarray, metadata: Metadata) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """Split (H, W) class indices into the (mask, colour, name) of each class that occurs."""
    names = metadata.get("stuff_classes")
    if not names:
        raise InputError(f"dataset '{metadata.name}' has no stuff_classes to name segments by")
    return [
        (stuff == index, _color(metadata.get("stuff_colors"), index), names[index])
        for index in np.unique(stuff)
        if index < len(names)
    ]


def _labels(things: _Things, metadata: Metadata) -> list[str]:
    """Name each instance's class, unless there is but one, and add the remark."""
    names = metadata.get("thing_classes")
    if names and max(things.classes, default=0) >= len(names):
        raise InputError(
            f"class {max(things.classes)} was predicted, but dataset '{metadata.name}' has only "
            f"{len(names)}: it is not the one that the model was trained for"
        )
    if not names:
        classes = [f"class {index}" for index in things.classes]
    elif len(names) == 1:
        classes = [""] * len(things.classes)
    else:
        classes = [names[index] for index in things.classes]
    pairs = zip(classes, things.remarks, strict=True)
    return [f"{name} {remark}".strip() for name, remark in pairs]
