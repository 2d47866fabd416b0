"""A config's model with its weights, ready to predict."""

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..errors import InputError
from .checkpoint import Checkpointer
from .run_checks import check_weights


def check_trained_weights(cfg: CfgNode) -> None:
    """Raise InputError if ``MODEL.WEIGHTS`` is empty, or a local file that does not exist."""
    if not cfg.MODEL.WEIGHTS:
        raise InputError("MODEL.WEIGHTS is empty: name the weights of a trained model")
    check_weights(cfg)


def load_model(cfg: CfgNode) -> nn.Module:
    """Build a config's model, in evaluation mode, with its ``MODEL.WEIGHTS``.

    Raises:
        InputError: there are no weights, or they cannot be loaded or do not fit.
    """
    check_trained_weights(cfg)
    model = build_model(cfg).eval()
    Checkpointer(model, complete=True, trusted=cfg.MODEL.TRUST_WEIGHTS).load(cfg.MODEL.WEIGHTS)
    return model
