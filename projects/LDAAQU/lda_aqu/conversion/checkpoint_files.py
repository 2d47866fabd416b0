"""Reading checkpoints without running what they bring, and writing them whole or not at all."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, as_input_error, first_few, one_line
from ..files import atomic_write
from ..safe_loading import WeightsUnpickler, check_archive, refused_class

_ARRAYS = (Tensor, np.ndarray)


def read_checkpoint(path: Path, key: str, trusted: bool = False) -> dict[str, Any]:
    """A checkpoint file's entries, on the CPU; that named ``key`` are the weights.

    A file of nothing but tensors by their names is taken as these weights.

    Args:
        path: a file that ``torch.save`` wrote, or a ``.pkl`` as those of Detectron2's model zoo.
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
        checkpoint = _load(path, trusted)
    # Whatever is raised while bytes of any origin are parsed says that they are no checkpoint.
    except Exception as error:
        if refused := refused_class(error):
            raise InputError(
                f"{file} holds objects other than tensors (the first is of {refused}): reading "
                "them can run code that the file brings; if you trust where it is from, give "
                "--trust-weights"
            ) from error
        raise InputError(f"{file} cannot be read: {one_line(error)}") from error
    if isinstance(checkpoint, dict) and all(isinstance(v, _ARRAYS) for v in checkpoint.values()):
        checkpoint = {key: checkpoint}
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(key), dict):
        there = f" but {first_few(list(checkpoint))}" if isinstance(checkpoint, dict) else ""
        raise InputError(f"{file} has no weights under {key!r}{there}")
    weights = {}
    for name, value in checkpoint[key].items():
        if not isinstance(value, _ARRAYS):
            raise InputError(f"{file}: {name} is not a tensor but a {type(value).__name__}")
        with as_input_error(f"{file}: {name}", TypeError):  # an array of objects
            weights[name] = torch.as_tensor(value)
    return {**checkpoint, key: weights}


def _load(path: Path, trusted: bool) -> Any:
    if path.suffix == ".pkl":
        with path.open("rb") as file:
            unpickler = pickle.Unpickler if trusted else WeightsUnpickler
            return unpickler(file, encoding="latin1").load()
    if zipfile.is_zipfile(path):
        check_archive(path)
    return torch.load(path, map_location="cpu", weights_only=not trusted)


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
