"""IoU and boundary IoU of a model's semantic segmentations."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image
from tabulate import tabulate

logger = logging.getLogger(__name__)

BOUNDARY_WIDTH = 0.02
"""Width of the boundary region over the diagonal of the image, as published."""

NO_LABEL = -1


def load_labels(path: str) -> np.ndarray:
    """The label map in an image file: (H, W) int16."""
    with PathManager.open(path, "rb") as file:
        return np.array(Image.open(file), dtype=np.int16)


def boundary_labels(labels: np.ndarray, width: int) -> np.ndarray:
    """Keep the labels of the pixels near another label, or near the edge of the image.

    What is left of each label is what an erosion of its mask by a square takes away.

    Args:
        labels: (H, W) integers that int16 can hold.
        width: of the boundary in pixels; distances are the larger of those along x and y.

    Returns:
        (H, W) int16, with NO_LABEL in place of the other labels.
    """
    labels = labels.astype(np.int16)
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    # The edge is lower than any label, so the erosion sees it.
    edge = {"borderType": cv2.BORDER_CONSTANT, "borderValue": np.iinfo(np.int16).min}
    near = (cv2.erode(labels, window, **edge) < labels) | (cv2.dilate(labels, window) > labels)
    return np.where(near, labels, NO_LABEL)


class SemanticEvaluator(SemSegEvaluator):
    """Detectron2's metrics and boundary IoU, in percent.

    The keys of the results are "mIoU", "fwIoU", "mACC", "pACC", "IoU-<class>", "ACC-<class>" as in
    :class:`SemSegEvaluator`, and "BoundaryIoU" (the mean over classes), "BoundaryIoU-<class>". A
    class that is not in the ground truth has NaN and does not count in the means.

    Boundary IoU is the IoU of the classes' boundary regions (Cheng et al., "Boundary IoU:
    Improving Object-Centric Image Segmentation Evaluation", CVPR 2021), whose pixels are counted
    over the dataset. Ignored pixels are, in ground truth and prediction alike, treated like those
    outside the image. (Detectron2's own erodes the label map instead of each class's mask, so its
    boundary pixels carry differences of labels; it is switched off.)

    Args:
        dataset_name: a dataset whose records have "sem_seg_file_name" and whose metadata has
            ``stuff_classes`` and ``ignore_label``.
        output_dir: where the predictions are kept, as in :class:`SemSegEvaluator`.
        distributed: collect what all processes counted. All of them must then call
            :meth:`evaluate`, and the main one gets the results.
    """

    def __init__(
        self, dataset_name: str, output_dir: str | None = None, distributed: bool = True
    ) -> None:
        super().__init__(dataset_name, distributed, output_dir)
        self._compute_boundary_iou = False
        self.reset()

    def reset(self) -> None:
        """Forget all counts and predictions."""
        super().reset()
        # Rows: pixels of the boundary regions that agree, that are predicted, that are labelled.
        self._boundary_pixels = np.zeros((3, self._num_classes), np.int64)

    def process(
        self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]
    ) -> None:
        """Count the pixels of some images.

        Args:
            inputs: for each image, its "file_name".
            outputs: for each image, "sem_seg": (K, H, W) scores of the classes.
        """
        num_labels = self._num_classes + 1  # the last stands for ignored pixels
        for image, output in zip(inputs, outputs, strict=True):
            truth = load_labels(self.input_file_to_gt_file[image["file_name"]])
            predicted = output["sem_seg"].argmax(dim=0).cpu().numpy()
            self._predictions.extend(self.encode_json_sem_seg(predicted, image["file_name"]))

            ignored = truth == self._ignore_label
            pairs = num_labels * predicted + np.where(ignored, self._num_classes, truth)
            counts = np.bincount(pairs.ravel(), minlength=num_labels**2)
            self._conf_matrix += counts.reshape(num_labels, num_labels)

            width = max(1, round(BOUNDARY_WIDTH * np.hypot(*truth.shape)))
            truth, predicted = (
                boundary_labels(np.where(ignored, NO_LABEL, labels), width)
                for labels in (truth, predicted)
            )
            self._boundary_pixels += [
                np.bincount(labels[labels != NO_LABEL], minlength=self._num_classes)
                for labels in (truth[truth == predicted], predicted, truth)
            ]

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """``{"sem_seg": {"mIoU": percent, ...}}``, or None where another process has it."""
        counts = (
            comm.gather(self._boundary_pixels) if self._distributed else [self._boundary_pixels]
        )
        results = super().evaluate()
        if results is None:
            return None
        agreed, predicted, labelled = np.sum(counts, axis=0)
        iou = np.full(self._num_classes, np.nan)
        present = labelled > 0
        iou[present] = 100 * agreed[present] / (predicted + labelled - agreed)[present]

        metrics = results["sem_seg"]
        metrics["BoundaryIoU"] = iou[present].mean()
        names = self._class_names
        metrics |= {f"BoundaryIoU-{name}": value for name, value in zip(names, iou, strict=True)}
        columns = ("IoU", "BoundaryIoU", "ACC")
        rows = [["mean", *(metrics[key] for key in ("mIoU", "BoundaryIoU", "mACC"))]]
        rows += [[name, *(metrics[f"{column}-{name}"] for column in columns)] for name in names]
        table = tabulate(rows, ["class", *columns], tablefmt="pipe", floatfmt=".2f")
        logger.info("Semantic segmentation:\n%s", table)
        return results
