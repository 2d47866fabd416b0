"""The training loop: Detectron2's, with evaluation, the best checkpoint and exact metrics files."""

import logging
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.solver import LRScheduler
from detectron2.utils import comm
from torch import distributed, nn

from ..data.images import ImageMapper
from ..data.loaders import EvaluationLoader, TrainLoader, build_train_loader
from ..data.semantic_augmentation import build_semantic_augmentation
from ..errors import InputError, mistake_in, shorten
from ..evaluation import build_evaluator, primary_metric
from ..modeling import augmented
from .accumulating_trainer import AccumulatingTrainer
from .checkpoint import Checkpointer
from .divergence import divergence
from .exact_resume import ExactResume
from .metrics_file import read_metrics, truncate_metrics
from .optimizer import build_optimizer
from .output_folder import OutputFolderStays
from .peak_memory import PeakMemory
from .preemption import Preemption

logger = logging.getLogger(__name__)

AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
"""The values of ``SOLVER.AMP.DTYPE``."""


class Trainer(DefaultTrainer):
    """Detectron2's default trainer for this project's configs.

    The evaluator follows from the ``evaluator_type`` of each test dataset; the checkpoint with the
    best primary metric is kept as ``model_best.pth``.

    Raises:
        TypeError: a subclass has training data that no checkpoint can hold the position in.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Not DefaultTrainer's, whose steps and distributed models are for GPUs alone.
        TrainerBase.__init__(self)
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        if not isinstance(data_loader, TrainLoader):
            raise TypeError(
                "build_train_loader must return what lda_aqu.data.loaders.build_train_loader(cfg, "
                "mapper, total_batch_size) does, so that a run can be resumed, not a "
                f"{type(data_loader).__name__}"
            )
        # Each process has a GPU of its own, or shares the CPU, which has no number.
        devices = {"device_ids": None} if cfg.MODEL.DEVICE == "cpu" else {}
        self._trainer = AccumulatingTrainer(
            create_ddp_model(model, broadcast_buffers=False, **devices),
            data_loader,
            optimizer,
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
            amp_dtype=AMP_DTYPES[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else None,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            trusted=cfg.MODEL.TRUST_WEIGHTS,
            trainer=weakref.proxy(self),
        )
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """As in :class:`DefaultTrainer`, with the values of the config that is given now.

        ``metrics.json`` is cut back to the checkpoint resumed.

        Raises:
            InputError: see :class:`Checkpointer`; or not all processes have found the checkpoint.
        """
        groups = self.optimizer.param_groups
        options = [{key: group[key] for key in group if key != "params"} for group in groups]
        schedule = self.scheduler.state_dict()
        super().resume_or_load(resume)
        starts = comm.all_gather(self.start_iter)
        if len(set(starts)) > 1:
            raise InputError(
                f"the processes would go on at the iterations {', '.join(map(str, starts))}: "
                f"OUTPUT_DIR {self.cfg.OUTPUT_DIR!r} must be a folder that all machines share"
            )
        if self.start_iter == 0:
            return
        changes = self._exact_resume.changes
        if any(key.startswith("SOLVER.") for key in changes):
            self._set_solver(options, schedule)
        logger.info("Resuming at iteration %d", self.start_iter)
        for key, (then, now) in changes.items():
            logger.warning(
                "%s was %s until now: from iteration %d on it is %s",
                *(key, shorten(then), self.start_iter, shorten(now)),
            )
        if comm.is_main_process():
            truncate_metrics(self.cfg.OUTPUT_DIR, self.start_iter, self.max_iter)

    def _set_solver(self, options: list[dict[str, Any]], schedule: dict[str, Any]) -> None:
        """Give optimizer and schedule, which are at some iteration, these options and state."""
        self.scheduler.load_state_dict({**schedule, "last_epoch": self.scheduler.last_epoch})
        rates = self.scheduler.get_lr()
        for group, given, rate in zip(self.optimizer.param_groups, options, rates, strict=True):
            group.update(given | {"lr": rate})

    def run_step(self) -> None:
        """As in :class:`DefaultTrainer`.

        Raises:
            InputError: a loss, or what Detectron2 computes on the way to it, is no number.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            file_names = self.data_loader.file_names
            raise divergence(error, self.iter, file_names, self.cfg.OUTPUT_DIR) from error

    def train(self) -> dict[str, Any] | None:
        """As in :class:`DefaultTrainer`.

        Raises:
            InputError: see :meth:`run_step`; an image that cannot be read, a checkpoint that cannot
                be written, an output folder that was removed.
            SystemExit: the run was told to end, see :class:`~lda_aqu.engine.preemption.Preemption`.
        """
        with _no_traceback_of_mistakes():
            return super().train()

    def after_train(self) -> None:
        """As in :class:`DefaultTrainer`; where no iteration was left, as after the last one.

        Where the last iteration failed, nothing is evaluated: the other processes may not have
        failed, and would not take part.
        """
        self.data_loader.close()
        self.iter = min(self.iter, self.max_iter)
        if self.iter == self.max_iter - 1:
            evaluating = (hooks.EvalHook, hooks.BestCheckpointer)
            self._hooks = [hook for hook in self._hooks if not isinstance(hook, evaluating)]
        super().after_train()

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks; those of this package for faults; one for the best checkpoint.

        With ``TEST.AUG.ENABLED`` there is, at the end, one more evaluation, :meth:`test_with_TTA`.
        """
        result = super().build_hooks()
        writers = [hook for hook in result if isinstance(hook, hooks.PeriodicWriter)]
        if self.cfg.DATASETS.TEST and comm.is_main_process():
            best = BestCheckpointer(
                self.cfg.TEST.EVAL_PERIOD,
                Checkpointer(self.model, self.cfg.OUTPUT_DIR, resumable=False),
                primary_metric(self.cfg),
            )
            result.append(best)
        if self.cfg.TEST.AUG.ENABLED:
            result.append(hooks.EvalHook(0, lambda: self.test_with_TTA(self.cfg, self.model)))
        device = next(self.model.parameters()).device
        if device.type == "cuda":
            result.append(PeakMemory(device))
        # A checkpoint says that all before it was done and written: what comes after it, an
        # evaluation for instance, would be lost where a run is killed right then.
        saving = [hook for hook in result if isinstance(hook, hooks.PeriodicCheckpointer)]
        others = [hook for hook in result if hook not in saving + writers]
        last = [Preemption(self.checkpointer)]
        if comm.is_main_process():
            last.append(OutputFolderStays(self.checkpointer))
        self._exact_resume = ExactResume(self.cfg)
        return [self._exact_resume, *others, *writers, *saving, *last]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """As in :class:`DefaultTrainer`, with the backbone compiled if MODEL.BACKBONE.COMPILE."""
        model = super().build_model(cfg)
        if cfg.MODEL.BACKBONE.COMPILE:
            # Shapes that are known: with others, the code generator gives up on the pyramid.
            model.backbone.compile(dynamic=False)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """Batches of ``SOLVER.IMS_PER_BATCH / SOLVER.ACCUMULATION_STEPS`` over all processes.

        They are of ``DATASETS.TRAIN``, with augmentation of their own for semantic models.
        """
        augmentations = {}
        if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor":
            augmentations["augmentations"] = build_semantic_augmentation(cfg)
        mapper = ImageMapper(cfg, is_train=True, **augmentations)
        total_batch_size = cfg.SOLVER.IMS_PER_BATCH // cfg.SOLVER.ACCUMULATION_STEPS
        return build_train_loader(cfg, mapper, total_batch_size)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> EvaluationLoader:
        """The images of a test dataset one at a time."""
        return EvaluationLoader(cfg, dataset_name)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """The schedule ``SOLVER.LR_SCHEDULER_NAME``: Detectron2's, and DeepLab's WarmupPolyLR."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluator of a dataset: see :func:`lda_aqu.evaluation.build_evaluator`."""
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer that the config names: see :func:`.optimizer.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: Sequence[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        """As in :class:`DefaultTrainer`, in all processes with the model of the main one.

        The statistics of batch normalisation differ between processes that train, and it is the
        main one's that are saved. What weights lack starts at random, in each process otherwise.
        """
        if comm.get_world_size() > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                distributed.broadcast(tensor.detach(), src=0)
        return super().test(cfg, model, evaluators)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:  # noqa: N802
        """The results of :meth:`test` with test-time augmentation, as Detectron2 names them.

        Args:
            cfg: the config, with ``TEST.AUG``.
            model: the model without augmentation.

        Returns:
            ``{"bbox_TTA": {"AP": ...}, ...}``; where there are several test datasets, it is their
            names that end in ``_TTA``.
        """
        logger.info("Evaluating with test-time augmentation: %s", dict(cfg.TEST.AUG))
        evaluators = [build_evaluator(cfg, name, "inference_TTA") for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, augmented(cfg, model), evaluators)
        return {f"{name}_TTA": result for name, result in results.items()}


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's hook, which after a resume knows the best value of before.

    It is in the checkpoint, as of several evaluations between two records only the last is in the
    metrics file; but one after the last iteration is in that file alone.
    """

    def state_dict(self) -> dict[str, tuple[float | None, int | None]]:
        """The best value so far, and its iteration, by the name of the metric."""
        return {self._val_metric: (self.best_metric, self.best_iter)}

    def load_state_dict(self, state: dict[str, tuple[float | None, int | None]]) -> None:
        """Go on from there, unless it is of another metric."""
        self.best_metric, self.best_iter = state.get(self._val_metric, (None, None))

    def before_train(self) -> None:
        """Read what the metrics file of a run that is resumed has beyond that."""
        if self.trainer.start_iter == 0:
            return
        for record in read_metrics(self.trainer.cfg.OUTPUT_DIR):
            value = record.get(self._val_metric)
            if value is not None and (self.best_metric is None or value > self.best_metric):
                self._update_best(value, record["iteration"])


@contextmanager
def _no_traceback_of_mistakes() -> Iterator[None]:
    """Keep Detectron2's training loop from logging tracebacks of errors that are reported.

    So is, by the process that has started it, the end of another process, which this one then
    finds gone.
    """

    def keep(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        lost_another = comm.get_world_size() > 1 and "by peer" in str(error)  # as gloo says it
        return error is None or (mistake_in(error) is None and not lost_another)

    loop_logger = logging.getLogger("detectron2.engine.train_loop")
    loop_logger.addFilter(keep)
    try:
        yield
    finally:
        loop_logger.removeFilter(keep)
