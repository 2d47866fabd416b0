"""The training step: forward and backward in parts and in mixed precision, on any device."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .divergence import check_finite


class AccumulatingTrainer(SimpleTrainer):
    """Detectron2's SimpleTrainer, whose step may be several batches and in mixed precision.

    The gradients of ``accumulation_steps`` batches are averaged before the optimizer's step, and
    processes exchange them once a step. Unlike Detectron2's AMPTrainer it runs on CPUs too. Losses
    in float16 are scaled, and gradients unscaled before the optimizer clips them; a step whose
    gradients overflow is left out, as in :class:`torch.amp.GradScaler`.

    Args:
        model: returns a dict of losses in training; on the one device that it is trained on.
        data_loader: yields the batches.
        optimizer: steps once every ``accumulation_steps`` batches.
        accumulation_steps: batches in a step.
        amp_dtype: ``torch.float16`` or ``torch.bfloat16`` for autocast, or None for none.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        *,
        accumulation_steps: int = 1,
        amp_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.accumulation_steps = accumulation_steps
        self.amp_dtype = amp_dtype
        self.device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=amp_dtype == torch.float16
        )

    def run_step(self) -> None:
        """One step of the optimizer; the losses that are logged are means over its batches.

        Raises:
            FloatingPointError: a loss is no number.
        """
        data_time = 0.0
        losses: Counter[str] = Counter()
        self.optimizer.zero_grad()
        for index in range(self.accumulation_steps):
            start = time.perf_counter()
            batch = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            with self._exchange_gradients(index == self.accumulation_steps - 1):
                with torch.autocast(
                    self.device_type, self.amp_dtype, enabled=self.amp_dtype is not None
                ):
                    batch_losses = self.model(batch)
                shares = {n: loss / self.accumulation_steps for n, loss in batch_losses.items()}
                self.grad_scaler.scale(sum(shares.values())).backward()
            # Not before: a GPU that is waited for between the passes has nothing to do for a while.
            check_finite(batch_losses)
            for name, loss in shares.items():
                losses[name] += loss.detach()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _exchange_gradients(self, exchange: bool) -> contextlib.AbstractContextManager:
        """Whether the backward pass inside averages the gradients over the processes."""
        if exchange or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def state_dict(self) -> dict[str, Any]:
        """As in :class:`SimpleTrainer`, with the scale of the losses."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in :class:`SimpleTrainer`; a run without float16 has no scale to go on with."""
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
