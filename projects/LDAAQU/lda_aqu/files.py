"""Folders that can be written, and files that an interruption leaves as they were or will be."""

import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from .errors import InputError

UNFINISHED = ".unfinished"


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` when the block ends, and is on the disk then.

    Until that moment, and if the block raises, ``path`` is as it was. A process that is killed
    leaves its part in ``<path>.<process id>.unfinished``.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    unfinished.unlink(missing_ok=True)
    try:
        with unfinished.open("xb") as file:  # which follows no link
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


def make_folder(folder: str | os.PathLike, name: str) -> None:
    """Make a folder for output, and raise InputError unless files can be written in it.

    Args:
        folder: its parents are made, too.
        name: the key or option that names it, for the message.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name} {str(folder)!r} cannot be written: {reason}") from error


def unused_name(path: Path) -> Path:
    """A name beside ``path`` that is free, with the time of its last change: ``a-<time>.json``."""
    stamp = datetime.fromtimestamp(path.lstat().st_mtime).strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        tag = stamp if number == 1 else f"{stamp}-{number}"
        name = path.with_name(f"{path.stem}-{tag}{path.suffix}")
        if not os.path.lexists(name):
            return name
