"""Loading weights, and refusing those that do not fit."""

import logging
import pickle
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import _IncompatibleKeys
from torch import nn

from ..errors import InputError
from ..upsamplers import Upsampler

logger = logging.getLogger(__name__)


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which fails where weights are not those of the model.

    The upsamplers' parameters may always be missing, so that a model-zoo checkpoint loads; they
    keep their initial values and are reported.

    Args:
        model: the model to load into or to save.
        save_dir: folder of the checkpoints.
        complete: every other parameter must be in the file, as for an evaluation. Otherwise those
            of the backbone (of its bottom-up network, where it has one) must be, so that ImageNet
            weights load.
        checkpointables: as in :class:`DetectionCheckpointer`.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        complete: bool = False,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self._complete = complete
        self._path = ""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint: see :meth:`DetectionCheckpointer.load`.

        Raises:
            InputError: the file cannot be fetched or read, or its weights do not fit the model.
        """
        self._path = path
        try:
            return super().load(path, *args, **kwargs)
        # What fetching, unpickling and torch.load raise for what is missing or no checkpoint.
        except (OSError, EOFError, pickle.UnpicklingError, RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()
            raise InputError(
                f"weights {path!r} cannot be loaded: {type(error).__name__}"
                + (f": {reason[0]}" if reason else "")
            ) from error

    def _load_model(self, checkpoint: dict[str, Any]) -> _IncompatibleKeys:
        incompatible = super()._load_model(checkpoint)
        # fvcore lists tensors of another shape apart from missing ones: both keep random values.
        misshapen = {key: (theirs, ours) for key, theirs, ours in incompatible.incorrect_shapes}
        absent = {*incompatible.missing_keys, *misshapen}
        upsamplers = {
            f"{name}.{parameter}"
            for name, module in self.model.named_modules()
            if isinstance(module, Upsampler)
            for parameter, _ in module.named_parameters()
        }
        if self._complete:
            required = {name for name, _ in self.model.named_parameters()} - upsamplers
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
        fresh = sorted(upsamplers & absent)
        if fresh:
            logger.info(
                "%d parameters of the upsamplers are not in %r and keep their initial values",
                len(fresh),
                self._path,
            )
        return incompatible
