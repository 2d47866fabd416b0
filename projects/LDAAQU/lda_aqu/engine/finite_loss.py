"""Stopping a training whose loss is no number any more, with what is needed to see why."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from ..errors import InputError
from ..files import atomic_write

logger = logging.getLogger(__name__)


class FiniteLoss(HookBase):
    """Stops a training at the first loss that is NaN or infinite, before the backward pass.

    The iteration, the losses and the file names of the batch are saved in
    ``<output_dir>/non_finite_loss_<rank>.json``. Gradients that overflow under the loss scaling of
    float16 are none of its business.

    Args:
        model: returns a dict of scalar losses in training.
        output_dir: folder for the file.
    """

    def __init__(self, model: nn.Module, output_dir: str) -> None:
        self._model = model
        self._output_dir = Path(output_dir)

    def before_train(self) -> None:
        """Look at the losses from now on."""
        self._handle = self._model.register_forward_hook(self._check)

    def after_train(self) -> None:
        """Look no more."""
        self._handle.remove()

    def _check(self, model: nn.Module, _inputs: Any, losses: Mapping[str, torch.Tensor]) -> None:
        # In one transfer from the GPU.
        if not model.training or torch.stack([*losses.values()]).isfinite().all():
            return
        path = self._output_dir / f"non_finite_loss_{comm.get_rank()}.json"
        report = {
            "iteration": self.trainer.iter,
            "losses": {name: str(loss.item()) for name, loss in losses.items()},
            "file_names": self.trainer.data_loader.file_names,
        }
        with atomic_write(path) as file:
            file.write(json.dumps(report, indent=2).encode())
        wrong = [name for name, loss in losses.items() if not loss.isfinite()]
        raise InputError(
            f"iteration {self.trainer.iter}: {wrong[0]} is {report['losses'][wrong[0]]}; losses "
            f"and images are in {str(path)!r}. A lower SOLVER.BASE_LR, a longer "
            "SOLVER.WARMUP_ITERS or SOLVER.CLIP_GRADIENTS often helps"
        )
