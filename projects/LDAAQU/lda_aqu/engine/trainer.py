"""The training loop: Detectron2's, with evaluation, the best checkpoint and exact metrics files."""

import json
import logging
import os
import weakref
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.solver import LRScheduler
from detectron2.utils import comm

from ..data.semantic_augmentation import build_semantic_augmentation
from ..evaluation import build_evaluator, primary_metric
from .checkpoint import Checkpointer

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"


class Trainer(DefaultTrainer):
    """Detectron2's default trainer for this project's configs.

    The evaluator follows from the ``evaluator_type`` of each test dataset; the checkpoint with the
    best primary metric is kept as ``model_best.pth``.
    """

    def resume_or_load(self, resume: bool = True) -> None:
        """As in :class:`DefaultTrainer`; ``metrics.json`` is cut back to the checkpoint resumed."""
        if resume and not self.checkpointer.has_checkpoint():
            logger.warning("No checkpoint in %r to resume: a new run", self.cfg.OUTPUT_DIR)
        super().resume_or_load(resume)
        if self.start_iter > 0 and comm.is_main_process():
            logger.info("Resuming at iteration %d", self.start_iter)
            truncate_metrics(Path(self.cfg.OUTPUT_DIR) / METRICS_FILE, self.start_iter)

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks, and one that keeps the best checkpoint."""
        # Here, as the hooks of the superclass hold on to the checkpointer they find.
        self.checkpointer = Checkpointer(
            self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        result = super().build_hooks()
        if self.cfg.DATASETS.TEST and comm.is_main_process():
            best = BestCheckpointer(
                self.cfg.TEST.EVAL_PERIOD, self.checkpointer, primary_metric(self.cfg)
            )
            # After the evaluation, before the writers.
            result.insert(len(result) - 1, best)
        return result

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """As in :class:`DefaultTrainer`, with augmentation of their own for semantic models."""
        if cfg.MODEL.META_ARCHITECTURE != "SemanticSegmentor":
            return super().build_train_loader(cfg)
        augmentations = build_semantic_augmentation(cfg)
        return build_detection_train_loader(
            cfg, mapper=DatasetMapper(cfg, is_train=True, augmentations=augmentations)
        )

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """The schedule ``SOLVER.LR_SCHEDULER_NAME``: Detectron2's, and DeepLab's WarmupPolyLR."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluator of a dataset: see :func:`lda_aqu.evaluation.build_evaluator`."""
        return build_evaluator(cfg, dataset_name)


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's hook, which after a resume knows the best value of before."""

    def before_train(self) -> None:
        """Read the best value so far from the metrics file of a run that is resumed."""
        if self.trainer.start_iter == 0:
            return
        for record in _read_metrics(Path(self.trainer.cfg.OUTPUT_DIR) / METRICS_FILE):
            value = record.get(self._val_metric)
            if value is not None and (self.best_metric is None or value > self.best_metric):
                self._update_best(value, record["iteration"])


def set_aside_metrics(output_dir: str) -> None:
    """Rename the metrics file of an earlier run, if there is one, so that a new run has its own."""
    path = Path(output_dir) / METRICS_FILE
    if path.exists():
        stamp = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y%m%d-%H%M%S")
        kept = path.rename(path.with_name(f"metrics-{stamp}.json"))
        logger.info("The metrics of an earlier run are kept in %s", kept)


def truncate_metrics(path: Path, start_iter: int) -> None:
    """Drop the records from ``start_iter`` on, and an unfinished last line, from a metrics file.

    The file is cut in place: a writer that has it open for appending goes on at its new end.
    """
    keep = 0
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            record = json.loads(line)
            # The evaluation after a run's last iteration is recorded at the one that would follow.
            done = record["iteration"] + ("total_loss" in record)
            if done > start_iter:
                break
            keep += len(line)
    os.truncate(path, keep)


def _read_metrics(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    with path.open() as file:
        return [json.loads(line) for line in file]
