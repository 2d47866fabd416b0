"""The evaluators that a dataset asks for, and the one metric that ranks checkpoints."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from ..errors import InputError, one_line
from .instances import InstanceEvaluator
from .panoptic import PanopticEvaluator
from .sem_seg import SemanticEvaluator

COCO_DETECTIONS_PER_IMAGE = 100

# What a dataset of each evaluator_type has labels for.
LABELS = {
    "coco": ("instances",),
    "sem_seg": ("sem_seg",),
    "coco_panoptic_seg": ("panoptic_seg", "instances", "sem_seg"),
}
# Where a dataset's metadata says its labels are.
SOURCES = {"instances": "json_file", "sem_seg": "sem_seg_root", "panoptic_seg": "panoptic_json"}
# What a model of each MODEL.META_ARCHITECTURE predicts; any other is a detector.
PREDICTIONS = {
    "PanopticFPN": ("panoptic_seg", "instances", "sem_seg"),
    "SemanticSegmentor": ("sem_seg",),
}
DETECTOR_PREDICTIONS = ("instances",)


def predicted_tasks(cfg: CfgNode) -> tuple[str, ...]:
    """What a model of ``MODEL.META_ARCHITECTURE`` predicts, the most telling first."""
    return PREDICTIONS.get(cfg.MODEL.META_ARCHITECTURE, DETECTOR_PREDICTIONS)


def evaluated_tasks(cfg: CfgNode, dataset_name: str) -> list[str]:
    """What the model predicts and the dataset has labels for.

    Raises:
        InputError: the dataset's ``evaluator_type`` is not one of LABELS, or nothing is left.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type")
    if kind not in LABELS:
        allowed = ", ".join(map(repr, LABELS))
        raise InputError(f"dataset {dataset_name}: evaluator_type {kind!r}; allowed are {allowed}")
    predictions = predicted_tasks(cfg)
    tasks = [task for task in LABELS[kind] if task in predictions]
    if kind == "coco_panoptic_seg" and "sem_seg" in tasks and not metadata.get("sem_seg_root"):
        tasks.remove("sem_seg")
    if not tasks:
        raise InputError(
            f"dataset {dataset_name} (evaluator_type {kind!r}) cannot evaluate "
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}, which predicts "
            f"{', '.join(predictions)}"
        )
    return tasks


def build_evaluator(cfg: CfgNode, dataset_name: str, folder: str = "inference") -> DatasetEvaluator:
    """The evaluators of what the dataset has labels for and the model predicts.

    They write to ``folder`` in OUTPUT_DIR. The dataset's ``evaluator_type`` is one of

    - ``coco``: box AP, and mask AP if ``MODEL.MASK_ON``. COCO counts 100 detections an image;
      where ``TEST.DETECTIONS_PER_IMAGE`` is larger, that many.
    - ``sem_seg``: IoU and boundary IoU.
    - ``coco_panoptic_seg``: panoptic quality; those of ``coco``; and, where the metadata has
      ``sem_seg_root``, those of ``sem_seg``.

    Raises:
        InputError: the dataset has another type, or none, or no labels for the model's predictions.
    """
    return _Evaluators(dataset_name, list(build_evaluators(cfg, dataset_name, folder).values()))


class _Evaluators(DatasetEvaluators):
    """Detectron2's, which says in a line what cannot be read, as labels that are gone, or written.

    Raises:
        InputError: by the methods, if so.
    """

    def __init__(self, dataset_name: str, evaluators: list[DatasetEvaluator]) -> None:
        super().__init__(evaluators)
        self._name = dataset_name

    def process(self, inputs: Any, outputs: Any) -> None:
        with self._named_files():
            super().process(inputs, outputs)

    def evaluate(self) -> dict[str, Any]:
        with self._named_files():
            return super().evaluate()

    @contextmanager
    def _named_files(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            # Where a write fails, torch's writer may fail in turn, over the position.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise InputError(f"dataset {self._name} cannot be evaluated: {cause}") from error


def build_evaluators(
    cfg: CfgNode, dataset_name: str, folder: str = "inference"
) -> dict[str, DatasetEvaluator]:
    """The evaluators of :func:`build_evaluator` by their task: see LABELS.

    Each has a method ``check_ground_truth``, which evaluates the ground truth of an image as if it
    had been predicted.
    """
    evaluators = {}
    for task in evaluated_tasks(cfg, dataset_name):
        try:
            evaluators[task] = _build_one(cfg, dataset_name, task, folder)
        # Whatever is raised while files of any origin are parsed says that they cannot be used.
        except Exception as error:
            source = MetadataCatalog.get(dataset_name).get(SOURCES[task])
            raise InputError(
                f"dataset {dataset_name}: {source!r} cannot be read: {one_line(error)}"
            ) from error
    return evaluators


def primary_metric(cfg: CfgNode) -> str:
    """The metric by which checkpoints are ranked, as it is named in ``metrics.json``.

    The first of PQ, mask AP (box AP where the model has no masks) and mIoU that the model predicts
    and the first dataset of ``DATASETS.TEST`` has labels for. Where that has another
    ``evaluator_type``, for an evaluator of the user's, the first that the model predicts.
    """
    predictions = predicted_tasks(cfg)
    kind = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("evaluator_type")
    labels = LABELS.get(kind, predictions)
    task = next((task for task in predictions if task in labels), predictions[0])
    metric = {
        "panoptic_seg": "panoptic_seg/PQ",
        "sem_seg": "sem_seg/mIoU",
        "instances": "segm/AP" if cfg.MODEL.MASK_ON else "bbox/AP",
    }[task]
    return "/".join([*_subfolder(cfg, cfg.DATASETS.TEST[0]), metric])


def _build_one(cfg: CfgNode, dataset_name: str, task: str, folder: str) -> DatasetEvaluator:
    """The evaluator of one of the tasks in LABELS."""
    output_dir = os.path.join(cfg.OUTPUT_DIR, folder, *_subfolder(cfg, dataset_name))
    if task == "panoptic_seg":
        return PanopticEvaluator(dataset_name, output_dir)
    if task == "sem_seg":
        return SemanticEvaluator(dataset_name, output_dir)
    detections = cfg.TEST.DETECTIONS_PER_IMAGE
    return InstanceEvaluator(
        dataset_name,
        tasks=("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",),
        output_dir=output_dir,
        max_dets_per_image=detections if detections > COCO_DETECTIONS_PER_IMAGE else None,
    )


def _subfolder(cfg: CfgNode, dataset_name: str) -> list[str]:
    """The dataset's name where there are several, which is how Detectron2 names their results."""
    return [dataset_name] if len(cfg.DATASETS.TEST) > 1 else []
