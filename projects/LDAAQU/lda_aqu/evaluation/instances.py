"""Box and mask AP of a model's instances."""

import contextlib
import io
from collections.abc import Mapping
from typing import Any

from detectron2.evaluation import COCOEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..errors import InputError


class InstanceEvaluator(COCOEvaluator):
    """Detectron2's evaluator, for which an annotation may have the id 0.

    To pycocotools a detection that matches the annotation 0 matches none.

    Args:
        dataset_name: a dataset whose metadata has ``json_file``, in COCO's format.
        tasks: "bbox", "segm", or both.
        kwargs: as in :class:`COCOEvaluator`.
    """

    def __init__(self, dataset_name: str, tasks: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(dataset_name, tasks, **kwargs)
        annotations = self._coco_api.anns
        if 0 in annotations:
            annotations[0]["id"] = 1 + max(annotations)
            with contextlib.redirect_stdout(io.StringIO()):
                self._coco_api.createIndex()

    def check_ground_truth(self, record: Mapping[str, Any]) -> None:
        """Evaluate an image's annotations as if they had been predicted: all must be found.

        Crowds, which are not predicted, and objects of no area, which cannot be found, need not.

        Args:
            record: the image, with its "image_id".

        Raises:
            InputError: one is not found.
            Exception: what pycocotools raises of annotations that it cannot evaluate.
        """
        dataset, image_id = self._coco_api, record["image_id"]
        truth = COCO()
        truth.dataset = {
            "images": [dataset.imgs[image_id]],
            "categories": dataset.dataset["categories"],
            "annotations": dataset.imgToAnns[image_id],
        }
        truth.createIndex()
        objects = [a for a in truth.anns.values() if not a["iscrowd"]]
        for task in self._tasks if objects else ():
            results = [
                {"image_id": image_id, "category_id": a["category_id"], "score": 1.0}
                | ({"bbox": a["bbox"]} if task == "bbox" else {"segmentation": truth.annToRLE(a)})
                for a in objects
            ]
            evaluation = COCOeval(truth, truth.loadRes(results), task)
            evaluation.params.maxDets = [len(results)]
            evaluation.params.areaRng = evaluation.params.areaRng[:1]  # all sizes
            evaluation.evaluate()
            for outcome in filter(None, evaluation.evalImgs):
                found = ((outcome["dtMatches"] != 0) & ~outcome["dtIgnore"]).all(axis=0)
                for number, is_found in zip(outcome["dtIds"], found, strict=True):
                    if not is_found and results[number - 1]["area"] > 0:
                        raise InputError(
                            f"annotation {objects[number - 1]['id']!r} would not count as found "
                            f"({task}) if a model predicted just it"
                        )
