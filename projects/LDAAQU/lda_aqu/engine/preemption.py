"""A hook that saves a run which is told to end, as clusters do before they take a machine away."""

import logging
import signal
import sys
from types import FrameType

from detectron2.checkpoint import Checkpointer
from detectron2.engine import HookBase
from detectron2.utils import comm

logger = logging.getLogger(__name__)

PREEMPTED_STATUS = 128 + signal.SIGTERM
"""Exit status of a run that SIGTERM has ended, 143, as the shell has it."""


class Preemption(HookBase):
    """On SIGTERM ends the run after the current iteration, with a checkpoint to resume from.

    Every process of the run ends after the same iteration, whichever were told to, with the status
    PREEMPTED_STATUS. While a model is evaluated the signal waits.
    """

    def __init__(self, checkpointer: Checkpointer) -> None:
        self._checkpointer = checkpointer
        self._told = False
        self._previous = None

    def before_train(self) -> None:
        """Take the signal from now on."""
        self._previous = signal.signal(signal.SIGTERM, self._note)

    def after_step(self) -> None:
        """End the run if any process was told to."""
        if not any(comm.all_gather(self._told)):
            return
        iteration = self.trainer.iter
        self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        # Whoever started the processes may kill the others when the first of them ends.
        comm.synchronize()
        if comm.is_main_process():
            logger.warning(
                "SIGTERM: saved after iteration %d in %r and ending; --resume goes on from there",
                iteration,
                self._checkpointer.save_dir,
            )
        sys.exit(PREEMPTED_STATUS)

    def after_train(self) -> None:
        """Give the signal back."""
        signal.signal(signal.SIGTERM, self._previous)

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        self._told = True
