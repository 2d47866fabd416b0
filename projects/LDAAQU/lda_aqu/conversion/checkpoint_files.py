"""Reading checkpoints without running what they bring, and writing them whole or not at all."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..files import atomic_write


def read_checkpoint(path: Path, key: str, trusted: bool = False) -> dict[str, Any]:
    """A checkpoint file's entries, on the CPU; that named ``key`` are the weights.

    Args:
        path: a file that ``torch.save`` wrote.
        key: the entry that holds the weights, tensors by their names.
        trusted: read objects of any class, which can run code that the file brings.

    Raises:
        InputError: the file cannot be read, or not unless it is ``trusted``, or it has no weights
            under ``key``.
    """
    file = f"checkpoint {str(path)!r}"
    if not path.is_file():
        raise InputError(f"{file} does not exist")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=not trusted)
    # Whatever is raised while bytes of any origin are parsed says that they are no checkpoint.
    except Exception as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused and isinstance(error, pickle.UnpicklingError):
            raise InputError(
                f"{file} holds objects other than tensors (the first is of {refused[1]}): reading "
                "them can run code that the file brings; if you trust where it is from, give "
                "--trust-weights"
            ) from error
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{file} cannot be read: {type(error).__name__}: {reason}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(key), dict):
        there = f" but {', '.join(map(str, checkpoint))}" if isinstance(checkpoint, dict) else ""
        raise InputError(f"{file} has no weights under {key!r}{there}")
    for name, value in checkpoint[key].items():
        if not isinstance(value, Tensor):
            raise InputError(f"{file}: {name} is not a tensor but a {type(value).__name__}")
    return checkpoint


def check_output(path: Path, inputs: list[Path]) -> None:
    """Raise InputError unless ``path`` is a .pth in an existing folder, and none of ``inputs``."""
    if path.suffix != ".pth":
        raise InputError(f"output {str(path)!r}: the name must end in .pth")
    if not path.parent.is_dir():
        raise InputError(f"output {str(path)!r}: the folder does not exist")
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise InputError(
                f"output {str(path)!r} is the input {str(source)!r}: name another file"
            )


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint: at every moment ``path`` is what it was, or complete.

    Raises:
        InputError: it cannot be written, e.g. as the disk is full.
    """
    try:
        with atomic_write(path) as file:
            torch.save(checkpoint, file)
    # RuntimeError: how torch.save reports a write that fails.
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"output {str(path)!r} cannot be written: {reason}") from error
