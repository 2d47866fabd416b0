"""The output folder of a run: of one run at a time, and with nothing of an earlier run to go on."""

import errno
import fcntl
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detectron2.checkpoint import Checkpointer
from detectron2.engine import HookBase

from ..errors import InputError
from ..files import UNFINISHED, atomic_write, unused_name
from .exact_resume import WRITE_PERIOD
from .metrics_file import METRICS_FILE

logger = logging.getLogger(__name__)

RUN_ID_FILE = "run_id"


@contextmanager
def lock_output(folder: str) -> Iterator[None]:
    """Keep other runs out of the folder until the block, or the process, ends.

    Raises:
        InputError: another run has it.
    """
    # A lock of fcntl's is of this process: a worker that outlives it does not hold it.
    with open(os.path.join(folder, ".lock"), "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise InputError(
                    f"OUTPUT_DIR {folder!r} is that of a run that is still going: name another"
                ) from error
            logger.warning("OUTPUT_DIR %r cannot be locked: start no other run there", folder)
        for unfinished in Path(folder).glob(f"*{UNFINISHED}"):
            unfinished.unlink()
        yield


def begin_run(folder: str, *, resume: bool) -> bool:
    """Prepare the folder for a new run, or for one that goes on; whether it goes on.

    A new run gets an id, which is in its checkpoints, too. What an earlier one has left as metrics
    and as the name of its last checkpoint is renamed; so is what is no file, of any run.
    """
    last = Path(folder, "last_checkpoint")
    resume = resume and last.exists()
    for path in (Path(folder, METRICS_FILE), last):
        if os.path.lexists(path) and not (resume and path.is_file()):
            kept = path.rename(unused_name(path))
            logger.warning("%s is not of this run, and is kept as %s", path, kept.name)
    if not resume:
        with atomic_write(Path(folder, RUN_ID_FILE)) as file:
            file.write(uuid.uuid4().hex.encode())
    return resume


def read_run_id(folder: str) -> str | None:
    """The id of the run that a folder is of; None where it has none."""
    path = Path(folder, RUN_ID_FILE)
    return path.read_text(errors="replace") if path.is_file() else None


class OutputFolderStays(HookBase):
    """Ends a run whose output folder was removed or replaced, once the model is saved there.

    Args:
        checkpointer: saves into the folder.
    """

    def __init__(self, checkpointer: Checkpointer) -> None:
        self._checkpointer = checkpointer
        self._folder = self._look()

    def after_step(self) -> None:
        """Look for it as often as metrics are written."""
        if (self.trainer.iter + 1) % WRITE_PERIOD == 0 and self._look() != self._folder:
            iteration = self.trainer.iter
            self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
            self.after_train()

    def after_train(self) -> None:
        """Raise InputError unless it is still there."""
        if self._look() != self._folder:
            raise InputError(
                f"OUTPUT_DIR {self._checkpointer.save_dir!r} was removed during the run, with the "
                "metrics, the log and the checkpoints of before: what is there now is the model"
            )

    def _look(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._checkpointer.save_dir)
        except OSError:
            return None
        return found.st_dev, found.st_ino
