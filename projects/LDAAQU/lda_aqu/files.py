"""Writing files so that an interruption leaves either the old content or the new one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

UNFINISHED = ".unfinished"


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` when the block ends, and is on the disk then.

    Until that moment, and if the block raises, ``path`` is as it was. A process that is killed
    leaves its part in ``<path>.unfinished``, which the next writer overwrites; so there may be one
    writer at a time.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    # The renaming is on the disk once the folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
