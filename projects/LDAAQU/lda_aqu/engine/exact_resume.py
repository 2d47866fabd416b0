"""A hook by which a run that is resumed does what it would have done uninterrupted."""

from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import InputError
from ..random_seeds import derive_seed
from .config_merge import config_items

NORMALIZER = "loss_normalizer"
"""The attribute in which Detectron2's dense detectors keep what their state dict has not."""
WRITE_PERIOD = 20
"""Iterations after which Detectron2's trainer writes metrics, medians over as many iterations."""


class ExactResume(HookBase):
    """Makes an iteration a function of the weights, the seed and its number.

    With a non-negative ``SEED`` the global random generators are seeded anew for every iteration,
    in every process with another number. In the checkpoint are the position in the training data,
    which must come from a :class:`~lda_aqu.data.loaders.TrainLoader`, the metrics that are not
    written yet or that the next medians are taken over, what RetinaNet divides its losses by, and
    the config.

    Attributes:
        changes: the keys of the config that the checkpoint loaded had other values for, each with
            that value and the one given now.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg
        self._seed = cfg.SEED
        self.changes: dict[str, tuple[Any, Any]] = {}
        self._scalars: dict[str, dict[str, Any]] = {}
        self._normalizers: list[float] = []

    def before_train(self) -> None:
        """Put the metrics of before the interruption back."""
        if self.trainer.start_iter >= self.trainer.max_iter:
            return
        for name, scalar in self._scalars.items():
            for value, iteration in scalar["values"]:
                self.trainer.storage.put_scalar(
                    name, value, smoothing_hint=scalar["smoothing_hint"], cur_iter=iteration
                )

    def before_step(self) -> None:
        """Seed the iteration."""
        if self._seed >= 0:
            seed_all_rng(derive_seed(self._seed, comm.get_rank(), self.trainer.iter))

    def after_step(self) -> None:
        """Gather what each process divides its losses by: the main one alone saves."""
        if hasattr(self._model, NORMALIZER):
            self._normalizers = comm.all_gather(getattr(self._model, NORMALIZER))

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, and the metrics."""
        storage = self.trainer.storage
        # The writers come before the checkpoint, so that this is what they have written.
        written = metrics_written(self.trainer.iter + 1)
        hints, latest = storage.smoothing_hints(), storage.latest()
        scalars = {
            name: {
                "values": history.values()[-(WRITE_PERIOD if hints[name] else 1) :],
                "smoothing_hint": hints[name],
            }
            for name, history in storage.histories().items()
            if latest[name][1] >= (self.trainer.iter if hints[name] else written)
        }
        return {
            "batches_drawn": self.trainer.data_loader.batches_drawn,
            "loss_normalizers": self._normalizers,
            "scalars": scalars,
            "config": self._cfg.dump(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there, with the config given now: note what it changes.

        Raises:
            InputError: it has another optimizer, which cannot go on from the state of this one.
        """
        self.trainer.data_loader.batches_drawn = state["batches_drawn"]
        self._scalars = state["scalars"]
        normalizers = state.get("loss_normalizers")
        if normalizers:  # of as many processes as there were
            setattr(self._model, NORMALIZER, normalizers[comm.get_rank() % len(normalizers)])
        # Through YAML, so that tuples and lists compare alike.
        now, then = (
            dict(config_items(CfgNode(yaml.safe_load(text))))
            for text in (self._cfg.dump(), state.get("config", self._cfg.dump()))
        )
        keys = sorted(now.keys() | then.keys())
        optimizer = then.get("SOLVER.OPTIMIZER", "SGD")  # there was none but that before the key
        if optimizer != now["SOLVER.OPTIMIZER"]:
            raise InputError(
                f"SOLVER.OPTIMIZER {now['SOLVER.OPTIMIZER']}: the run that is resumed has "
                f"{optimizer}, whose state another one cannot use"
            )
        self.changes = {k: (then.get(k), now.get(k)) for k in keys if then.get(k) != now.get(k)}

    @property
    def _model(self) -> nn.Module:
        model = self.trainer.model
        return model.module if isinstance(model, DistributedDataParallel) else model


def metrics_written(iterations: int) -> int:
    """How many of the first ``iterations`` are in the metrics file when they are done."""
    return iterations // WRITE_PERIOD * WRITE_PERIOD
