"""Reading checkpoints without running what they bring, and writing them whole or not at all."""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError


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
    checkpoint = _load(path, trusted)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(key), dict):
        there = f"but {', '.join(map(str, checkpoint))}" if isinstance(checkpoint, dict) else ""
        raise InputError(f"checkpoint {str(path)!r} has no weights under {key!r} {there}".strip())
    for name, value in checkpoint[key].items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"checkpoint {str(path)!r}: {name} is not a tensor but a {type(value).__name__}"
            )
    return checkpoint


def _load(path: Path, trusted: bool) -> Any:
    if not path.is_file():
        raise InputError(f"checkpoint {str(path)!r} does not exist")
    try:
        return torch.load(path, map_location="cpu", weights_only=not trusted)
    except ModuleNotFoundError as error:
        raise InputError(
            f"checkpoint {str(path)!r} holds objects of the Python module {error.name!r}, which is "
            "not installed: install it, or save the weights alone where it is"
        ) from error
    # What torch.load raises for objects it may not read, for damaged files and for other files.
    except (
        *(pickle.UnpicklingError, EOFError, OSError, RuntimeError),
        *(ValueError, LookupError, AttributeError, TypeError),
    ) as error:
        if isinstance(error, pickle.UnpicklingError) and not trusted:
            refused = re.search(r"GLOBAL (\S+)", str(error))
            raise InputError(
                f"checkpoint {str(path)!r} holds objects other than tensors"
                + (f" (the first is of {refused[1]})" if refused else "")
                + ": reading them can run code that the file brings; if you trust where it is "
                "from, give --trust-weights"
            ) from error
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"checkpoint {str(path)!r} cannot be read: {type(error).__name__}: {reason}"
        ) from error


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


def write_atomically(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint: at every moment ``path`` is what it was, or complete.

    Raises:
        InputError: it cannot be written, e.g. as the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    # RuntimeError: how torch.save reports a write that fails.
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"output {str(path)!r} cannot be written: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)
