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
from urllib.parse import quote

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from hotcoco.panoptic import PanopticEval
from PIL import Image
from tabulate import tabulate

from ..data.panoptic_files import id2rgb, read_segment_ids
from ..errors import InputError

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
    image, ``<image_id>.png`` (quoted as in a URL), in ``panoptic_predictions/``.

    Attributes:
        image_ids: of the images that are evaluated, all of those in ``panoptic_json``.

    Args:
        dataset_name: a dataset whose metadata has ``panoptic_json``, ``panoptic_root``,
            ``thing_dataset_id_to_contiguous_id`` and ``stuff_dataset_id_to_contiguous_id``, as
            ``register_coco_panoptic_separated`` sets them.
        output_dir: where the predictions are kept; without it they are deleted.
        distributed: collect the predictions of all processes. All of them must then call
            :meth:`evaluate`, and the main one gets the results.
    """

    def __init__(
        self, dataset_name: str, output_dir: str | None = None, distributed: bool = True
    ) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        with PathManager.open(metadata.panoptic_json) as file:
            self._ground_truth = json.load(file)
        self.image_ids = {a["image_id"] for a in self._ground_truth["annotations"]}
        self._panoptic_root = PathManager.get_local_path(metadata.panoptic_root)
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
                # Quoted, as an id that is a string may be a path to somewhere else.
                "file_name": f"{quote(str(image['image_id']), safe='')}.png",
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

        return {"panoptic_seg": self._score(self._ground_truth, predictions, self._output_dir)}

    def check_ground_truth(self, record: Mapping[str, Any]) -> None:
        """Evaluate an image's segments as if they had been predicted: PQ must be 100.

        Args:
            record: the image, with its "image_id", "width" and "height".

        Raises:
            InputError: it is not, or the image's PNG is not as it should be.
            Exception: what is raised of annotations that cannot be evaluated.
        """
        truth = self._ground_truth
        annotations = [a for a in truth["annotations"] if a["image_id"] == record["image_id"]]
        images = [image for image in truth["images"] if image["id"] == record["image_id"]]
        if (len(annotations), len(images)) != (1, 1):
            raise InputError(f"it has {len(annotations)} panoptic annotations, and must have one")
        (annotation,) = annotations
        things = {dataset_id: (True, c) for c, dataset_id in self._thing_ids.items()}
        classes = {dataset_id: (False, c) for c, dataset_id in self._stuff_ids.items()} | things
        segments = annotation["segments_info"]
        ids = read_segment_ids(
            Path(self._panoptic_root) / annotation["file_name"],
            (record["width"], record["height"]),
            [segment["id"] for segment in segments],
        )
        predicted = []
        for segment in segments:
            isthing, category = classes[segment["category_id"]]
            if segment["iscrowd"]:
                ids[ids == segment["id"]] = 0
            else:
                predicted.append({"id": segment["id"], "isthing": isthing, "category_id": category})
        self.reset()
        self.process([record], [{"panoptic_seg": (torch.from_numpy(ids), predicted)}])
        part = {**truth, "images": images, "annotations": annotations}
        quality = self._score(part, self._predictions)["PQ"]
        if predicted and not math.isclose(quality, 100):
            raise InputError(f"its segments would give PQ {quality:.1f} if a model predicted them")

    def _score(
        self,
        truth: dict[str, Any],
        predictions: list[dict[str, Any]],
        output_dir: str | None = None,
    ) -> dict[str, float]:
        with ExitStack() as stack:
            folder = output_dir or stack.enter_context(tempfile.TemporaryDirectory())
            evaluation = PanopticEval(
                truth, _write(predictions, Path(folder)), gt_folder=self._panoptic_root
            )
            evaluation.evaluate()
        names = {category["id"]: category["name"] for category in truth["categories"]}
        return _summarize(evaluation.results(), names)


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
