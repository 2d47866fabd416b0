"""When a fused operator may compute the layers of a module, whose weights it reads.

Much acts on a layer when it is called: hooks, pruning, spectral norms, adapters, quantisation,
sharding. A fused operator calls no layers, so it may serve only where nothing is attached to them.
"""

import logging
from functools import cache

import torch
from torch import nn
from torch.nn.modules import module as modules

from .channel_layer_norm import ChannelLayerNorm

logger = logging.getLogger(__name__)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# The types of the layers that are fused, and the settings with which they are.
_SETTINGS = {
    nn.Conv2d: {"stride": (1, 1), "dilation": (1, 1), "padding_mode": "zeros"},
    nn.LayerNorm: {"eps": 1e-5, "elementwise_affine": True},
    nn.GELU: {"approximate": "none"},
    ChannelLayerNorm: {},
}


def can_be_fused(owner: nn.Module, **layers: nn.Module) -> bool:
    """Whether layers are plain ones with nothing attached to them; it is logged once why not.

    Args:
        owner: the module that the layers are of, for the log.
        layers: by the names that they have in it.
    """
    for name, layer in layers.items():
        reason = _what_acts_on(layer)
        if reason:
            if not torch.compiler.is_compiling():
                _log(type(owner).__name__, name, reason)
            return False
    return True


def _what_acts_on(layer: nn.Module) -> str:
    """Why calling a layer is more than what its weights say, or ""."""
    if any(getattr(modules, f"_global{hooks}") for hooks in _HOOKS):
        return "all modules have hooks"
    for part in layer.modules():
        settings = _SETTINGS.get(type(part))
        if settings is None:
            return f"it is a {type(part).__name__}"
        for name, expected in settings.items():
            if getattr(part, name) != expected:
                return f"its {name} is {getattr(part, name)}"
        if "forward" in part.__dict__:
            return "its forward was replaced"
        if any(getattr(part, hooks) for hooks in _HOOKS):
            return "it has hooks"
    return ""


@cache
def _log(owner: str, name: str, reason: str) -> None:
    logger.info("%s: its layers are not fused, because of %s: %s", owner, name, reason)
