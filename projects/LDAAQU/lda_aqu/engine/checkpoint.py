"""Saving weights safely, loading them, and refusing those that are damaged or do not fit."""

import logging
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import _IncompatibleKeys
from torch import nn

from ..errors import InputError, mistake_in, one_line
from ..files import atomic_write
from ..safe_loading import WeightsUnpickler, check_archive, refused_class
from ..upsamplers import Upsampler
from .output_folder import read_run_id

logger = logging.getLogger(__name__)


class UnusableWeightsError(InputError):
    """The file of the weights is damaged, no checkpoint at all, or none that a run goes on from."""


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which fails where weights are not those of the model.

    The upsamplers' parameters may always be missing, so that a model-zoo checkpoint loads; they
    keep their initial values and are reported. A run that is killed while it saves loses neither
    the checkpoint before nor the name of the last one. Of what Python can unpickle, only what
    weights are made of is read, unless the file is trusted.

    Args:
        model: the model to load into or to save.
        save_dir: folder of the checkpoints.
        complete: every other parameter must be in the file, as for an evaluation. Otherwise those
            of the backbone (of its bottom-up network, where it has one) must be, so that ImageNet
            weights load.
        trusted: read files that may run code when they are read.
        resumable: what is saved is for a run to resume from.
        checkpointables: as in :class:`DetectionCheckpointer`.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        complete: bool = False,
        trusted: bool = False,
        resumable: bool = True,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self._complete = complete
        self._trusted = trusted
        self._resumable = resumable
        self._resuming = False
        self._path = ""
        self._run_id = read_run_id(save_dir) if save_dir else None

    def save(self, name: str, **kwargs: Any) -> None:
        """Save a checkpoint as ``<name>.pth``: see :meth:`DetectionCheckpointer.save`.

        Raises:
            InputError: the file cannot be written, e.g. as the disk is full; or a weight is no
                number.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        diverged = self._diverged(dict(self.model.named_parameters()))
        if diverged:
            raise InputError(
                f"checkpoint {name!r} is not saved, as {diverged} is no number: the training has "
                "diverged; those before are whole. A lower SOLVER.BASE_LR with --resume may help"
            )
        data = {"model": self.model.state_dict(), "run_id": self._run_id}
        data |= {key: value.state_dict() for key, value in self.checkpointables.items()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        try:
            os.makedirs(self.save_dir, exist_ok=True)
            with atomic_write(path) as file:
                torch.save(data | kwargs, file)
            if self._resumable:
                self.tag_last_checkpoint(f"{name}.pth")
        except (OSError, RuntimeError) as error:
            line = mistake_in(error)
            if line is None or "DataLoader worker" in line:
                raise
            raise InputError(
                f"checkpoint {path!r} cannot be written: {line}; those before are whole"
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make a checkpoint in the folder the one that a run resumes from."""
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint in the folder with the state of the run, or else ``path``.

        Where the last one is damaged, or its weights are no numbers, the newest whole one of this
        run is taken, with a warning.

        Raises:
            InputError: see :meth:`load`; or there is no whole checkpoint to resume from, or it is
                not one of this run.
        """
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[])
        candidates = self._candidates()
        self._resuming = True
        try:
            for candidate in candidates:
                try:
                    return self.load(candidate)
                except UnusableWeightsError as error:
                    logger.warning("%s; trying the checkpoint before it", error)
        finally:
            self._resuming = False
        raise InputError(
            f"none of the {len(candidates)} checkpoints in {self.save_dir!r} can be read: "
            "run without --resume, or into another OUTPUT_DIR"
        )

    def _candidates(self) -> list[str]:
        """The checkpoints that a run can resume from: the last, then the others, newest first."""
        numbers = {}
        for path in self.get_all_checkpoint_files():
            if name := re.fullmatch(r"model_(final|\d+)", Path(path).stem):
                numbers[path] = -1 if name[1] == "final" else int(name[1])
        content = Path(self.save_dir, "last_checkpoint").read_bytes()
        last = os.path.join(self.save_dir, content.decode(errors="replace").strip())
        if last not in self.get_all_checkpoint_files():
            logger.warning("last_checkpoint in %r names no file that is there", self.save_dir)
            last = None
        others = sorted(numbers.keys() - {last}, key=numbers.get, reverse=True)
        return others if last is None else [last, *others]

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint: see :meth:`DetectionCheckpointer.load`.

        Raises:
            UnusableWeightsError: the file cannot be fetched or is damaged.
            InputError: it holds more than weights, or its weights do not fit the model.
        """
        self._path = path
        try:
            return super().load(path, *args, **kwargs)
        except InputError:
            raise
        except (OSError, AssertionError) as error:
            raise UnusableWeightsError(
                f"weights {path!r} cannot be loaded: {one_line(error)}"
            ) from error
        # From converting names and shapes, and from the optimizer and schedule.
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(f"weights {path!r} do not fit: {one_line(error)}") from error
        finally:
            # Detectron2 leaves it set when it fails, and then refuses to load again.
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            if zipfile.is_zipfile(filename):
                check_archive(filename)
            if self._trusted:
                logger.warning("MODEL.TRUST_WEIGHTS: what %r holds may run code", self._path)
            if filename.endswith(".pkl") and not self._trusted:
                with open(filename, "rb") as file:
                    WeightsUnpickler(file, encoding="latin1").load()
            content = super()._load_file(filename)
        # Whatever is raised while bytes of any origin are parsed says that they are no checkpoint.
        except Exception as error:
            if refused := refused_class(error):
                raise InputError(
                    f"weights {self._path!r} hold more than weights ({refused}), and reading "
                    "it may run code: set MODEL.TRUST_WEIGHTS True if you trust their origin"
                ) from error
            raise UnusableWeightsError(
                f"weights {self._path!r} cannot be loaded: {one_line(error)}"
            ) from error
        if self._resuming and self._run_id and content.get("run_id") != self._run_id:
            raise UnusableWeightsError(f"weights {self._path!r} are of another run")
        weights = content.get("model")
        if not isinstance(weights, Mapping) or not all(
            isinstance(key, str) and isinstance(value, (torch.Tensor, np.ndarray))
            for key, value in weights.items()
        ):
            raise InputError(f"weights {self._path!r} are not tensors by the name of a parameter")
        return content

    def _torch_load(self, filename: str) -> Any:
        return torch.load(filename, map_location="cpu", weights_only=not self._trusted)

    def _diverged(self, weights: Mapping[str, torch.Tensor]) -> str | None:
        """The first of the model's parameters that has an element which is no number."""
        names = [name for name, _ in self.model.named_parameters() if name in weights]
        return next((n for n in names if not torch.as_tensor(weights[n]).isfinite().all()), None)

    def _load_model(self, checkpoint: dict[str, Any]) -> _IncompatibleKeys:
        diverged = self._diverged(checkpoint["model"]) if self._resuming else None
        if diverged:
            raise UnusableWeightsError(f"weights {self._path!r}: {diverged} is no number")
        weights = checkpoint["model"]
        incompatible = super()._load_model(checkpoint)
        # fvcore lists tensors of another shape apart from missing ones: both keep random values.
        misshapen = {key: (theirs, ours) for key, theirs, ours in incompatible.incorrect_shapes}
        absent = {*incompatible.missing_keys, *misshapen}
        parameters = {name for name, _ in self.model.named_parameters()}
        upsamplers = [n for n, m in self.model.named_modules() if isinstance(m, Upsampler)]
        of_upsamplers = {p for p in parameters if p.startswith(tuple(f"{n}." for n in upsamplers))}
        if self._resuming:
            required = parameters
            lost = sorted(self.checkpointables.keys() - checkpoint.keys())
            if lost:
                raise InputError(
                    f"{self._path!r} is no checkpoint to resume from: it has no {lost[0]!r}"
                )
        elif self._complete:
            required = parameters - of_upsamplers
        else:
            backbone = self.model.backbone
            bottom_up = {id(p) for p in getattr(backbone, "bottom_up", backbone).parameters()}
            required = {n for n, p in self.model.named_parameters() if id(p) in bottom_up}
        lacking = sorted(required & absent)
        if lacking:
            first = lacking[0]
            how = (
                "it has shape {} there and {} in the model".format(*misshapen[first])
                if first in misshapen
                else "it is not there"
            )
            raise InputError(
                f"weights {self._path!r} are of another architecture: {len(lacking)} of "
                f"{len(required)} parameters needed do not fit, the first is {first} ({how})"
            )
        others = _other_upsamplers(upsamplers, weights, {*absent, *incompatible.unexpected_keys})
        if others and self._complete:
            name, wrong = next(iter(others.items()))
            raise InputError(
                f"weights {self._path!r} have another upsampler at {name} than the config, or "
                f"the same with other options: {len(wrong)} of its parameters do not fit, the "
                f"first is {wrong[0]}"
            )
        if others:
            logger.warning(
                "weights %r have another upsampler at %s than the config: what they have there "
                "and the model has not is lost",
                self._path,
                ", ".join(others),
            )
        fresh = of_upsamplers & absent
        if fresh:
            logger.log(
                logging.WARNING if self._complete else logging.INFO,
                "%d of %d parameters are loaded from %r; the %d of the upsamplers %s are not, and "
                "keep their initial values",
                len(parameters - absent),
                len(parameters),
                self._path,
                len(fresh),
                ", ".join(n for n in upsamplers if any(p.startswith(f"{n}.") for p in fresh)),
            )
            # Otherwise fvcore lists them all in a warning.
            incompatible.missing_keys[:] = [k for k in incompatible.missing_keys if k not in fresh]
        return incompatible


def _other_upsamplers(
    upsamplers: list[str], weights: Mapping[str, torch.Tensor], misfits: set[str]
) -> dict[str, list[str]]:
    """By the upsamplers in whose place the weights have another: their parameters that misfit.

    Where they have none, the model had nearest or bilinear upsampling there.
    """
    found = {}
    for prefix in (f"{name}." for name in upsamplers):
        wrong = sorted(key for key in misfits if key.startswith(prefix))
        if wrong and any(key.startswith(prefix) for key in weights):
            found[prefix[:-1]] = wrong
    return found
