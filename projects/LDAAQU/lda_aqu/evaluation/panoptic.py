"""Panoptic quality of a model's panoptic segmentations."""

import io
import itertools
import json
import logging
import math
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from hotcoco.panoptic import PanopticEval
from PIL import Image
from tabulate import tabulate

from ..data.panoptic_files import id2rgb

logger = logging.getLogger(__name__)

MEASURES = ("PQ", "SQ", "RQ")
GROUPS = {"": "All", "_th": "Things", "_st": "Stuff"}


class PanopticEvaluator(DatasetEvaluator):
    """PQ, SQ and RQ, in percent: of all classes, of things, of stuff, and of each class.

    Kirillov et al., "Panoptic Segmentation", CVPR 2019, with the void and crowd rules of COCO's
    evaluation; computed by hotcoco. The keys of the results are "PQ", "PQ_th", "PQ_st",
    "PQ-<class>", and so on for SQ and RQ; NaN where a class is in neither ground truth nor
    predictions.

    The predictions are written in COCO's format: ``panoptic_predictions.json``, and one PNG an
    image, ``<image_id>.png``, in ``panoptic_predictions/``.

    Args:
        dataset_name: a dataset whose metadata has ``panoptic_json``, ``panoptic_root``,
            ``thing_dataset_id_to_contiguous_id`` and ``stuff_dataset_id_to_contiguous_id``, as
            ``register_coco_panoptic_separated`` sets them. Every image of the JSON is evaluated.
        output_dir: where the predictions are kept; without it they are deleted.
        distributed: collect the predictions of all processes. All of them must then call
            :meth:`evaluate`, and the main one gets the results.
    """

    def __init__(
        self, dataset_name: str, output_dir: str | None = None, distributed: bool = True
    ) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._panoptic_json = metadata.panoptic_json
        self._panoptic_root = metadata.panoptic_root
        things = metadata.thing_dataset_id_to_contiguous_id
        stuff = metadata.stuff_dataset_id_to_contiguous_id
        self._thing_ids = {contiguous: dataset_id for dataset_id, contiguous in things.items()}
        self._stuff_ids = {contiguous: dataset_id for dataset_id, contiguous in stuff.items()}
        self._output_dir = output_dir
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        """Forget all predictions."""
        self._predictions: list[dict[str, Any]] = []

    def process(
        self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]
    ) -> None:
        """Keep the predictions for some images.

        Args:
            inputs: for each image, its "image_id".
            outputs: for each image, "panoptic_seg": a (H, W) int tensor of segment ids, 0 where
                nothing is predicted, and the segments' "id", "isthing" and contiguous
                "category_id", as :class:`PanopticFPN` returns them.
        """
        for image, output in zip(inputs, outputs, strict=True):
            ids, segments = output["panoptic_seg"]
            ids = ids.cpu().numpy()
            present = np.unique(ids)
            png = io.BytesIO()
            Image.fromarray(id2rgb(ids)).save(png, format="PNG")
            annotation = {
                "image_id": image["image_id"],
                "file_name": f"{image['image_id']}.png",
                "segments_info": [
                    {
                        "id": segment["id"],
                        "category_id": (self._thing_ids if segment["isthing"] else self._stuff_ids)[
                            segment["category_id"]
                        ],
                    }
                    for segment in segments
                    # PanopticFPN lists stuff that things cover if its STUFF_AREA_LIMIT is 0.
                    if segment["id"] in present
                ],
            }
            self._predictions.append({"annotation": annotation, "png": png.getvalue()})

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """``{"panoptic_seg": {"PQ": percent, ...}}``, or None where another process has it.

        Raises:
            ValueError: an image has no prediction, or predictions or labels are malformed.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain(*comm.gather(predictions)))
            if not comm.is_main_process():
                return None

        with PathManager.open(self._panoptic_json) as file:
            ground_truth = json.load(file)
        with ExitStack() as stack:
            folder = self._output_dir or stack.enter_context(tempfile.TemporaryDirectory())
            evaluation = PanopticEval(
                ground_truth,
                _write(predictions, Path(folder)),
                gt_folder=PathManager.get_local_path(self._panoptic_root),
            )
            evaluation.evaluate()
        names = {category["id"]: category["name"] for category in ground_truth["categories"]}
        return {"panoptic_seg": _summarize(evaluation.results(), names)}


def _write(predictions: list[dict[str, Any]], folder: Path) -> Path:
    """Write predictions into ``folder``; returns the JSON, whose PNGs are in its namesake."""
    png_folder = folder / "panoptic_predictions"
    png_folder.mkdir(parents=True, exist_ok=True)
    for prediction in predictions:
        (png_folder / prediction["annotation"]["file_name"]).write_bytes(prediction["png"])
    path = png_folder.with_suffix(".json")
    path.write_text(json.dumps({"annotations": [p["annotation"] for p in predictions]}))
    return path


def _summarize(results: dict[str, Any], names: dict[int, str]) -> dict[str, float]:
    """Log hotcoco's results as tables, and return them under Detectron2's names."""
    metrics: dict[str, float] = {}
    overall, classes = [], []
    for suffix, group in GROUPS.items():
        values = _percents(results[group])
        metrics |= {f"{measure}{suffix}": value for measure, value in values.items()}
        overall.append([group, *values.values(), results[group]["n"]])
    for category, name in names.items():
        values = _percents(results["per_class"][category])
        metrics |= {f"{measure}-{name}": value for measure, value in values.items()}
        classes.append([name, *values.values()])
    for rows, headers in (
        (overall, ["", *MEASURES, "#classes"]),
        (classes, ["class", *MEASURES]),
    ):
        table = tabulate(rows, headers, tablefmt="pipe", floatfmt=".2f")
        logger.info("Panoptic quality:\n%s", table)
    return metrics


def _percents(scores: dict[str, float]) -> dict[str, float]:
    """PQ, SQ and RQ in percent; hotcoco gives -1 where there is nothing to score."""
    values = {measure: scores[measure.lower()] for measure in MEASURES}
    return {name: math.nan if value < 0 else 100 * value for name, value in values.items()}
