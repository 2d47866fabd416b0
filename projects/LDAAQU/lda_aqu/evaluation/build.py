"""The evaluator that a dataset asks for, and the one metric that ranks checkpoints."""

import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator

from ..errors import InputError

COCO_DETECTIONS_PER_IMAGE = 100


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """The evaluator for the dataset's ``evaluator_type``; it writes to OUTPUT_DIR/inference.

    ``coco``: box AP, and mask AP if ``MODEL.MASK_ON``. COCO counts 100 detections an image; where
    ``TEST.DETECTIONS_PER_IMAGE`` is larger, that many.

    Raises:
        InputError: the dataset has another type, or none.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind != "coco":
        raise InputError(f"dataset {dataset_name}: evaluator_type {kind!r}; allowed is 'coco'")
    detections = cfg.TEST.DETECTIONS_PER_IMAGE
    return COCOEvaluator(
        dataset_name,
        tasks=("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",),
        output_dir=os.path.join(cfg.OUTPUT_DIR, "inference", *_subfolder(cfg, dataset_name)),
        max_dets_per_image=detections if detections > COCO_DETECTIONS_PER_IMAGE else None,
    )


def primary_metric(cfg: CfgNode) -> str:
    """The metric by which checkpoints are ranked, as it is named in ``metrics.json``.

    Mask AP where the model has masks, else box AP; on the first dataset of ``DATASETS.TEST``.
    """
    metric = "segm/AP" if cfg.MODEL.MASK_ON else "bbox/AP"
    return "/".join([*_subfolder(cfg, cfg.DATASETS.TEST[0]), metric])


def _subfolder(cfg: CfgNode, dataset_name: str) -> list[str]:
    """The dataset's name where there are several, which is how Detectron2 names their results."""
    return [dataset_name] if len(cfg.DATASETS.TEST) > 1 else []
