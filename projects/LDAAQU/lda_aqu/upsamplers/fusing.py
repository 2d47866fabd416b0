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

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{hooks}" for hooks in HOOKS)

# The types of the layers that are fused, and the settings with which they are; convolutions are
# padded so that they keep the size.
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
    for hooks in _GLOBAL_HOOKS:
        if getattr(modules, hooks):
            return "all modules have hooks"
    settings = _SETTINGS.get(type(layer))
    if settings is None:
        return f"it is a {type(layer).__name__}"
    attributes = layer.__dict__
    for name, expected in settings.items():
        if attributes[name] != expected:
            return f"its {name} is {attributes[name]}"
    if "padding" in attributes:
        padding = attributes["padding"]
        if padding != tuple(side // 2 for side in attributes["kernel_size"]):
            return f"its padding is {padding}"
    elif isinstance(layer, nn.LayerNorm) and layer.bias is None:
        return "it has no bias"
    if "forward" in attributes:
        return "its forward was replaced"
    for hooks in HOOKS:
        if attributes[hooks]:
            return "it has hooks"
    for part in layer.children():
        if reason := _what_acts_on(part):
            return reason
    return ""


@cache
def _log(owner: str, name: str, reason: str) -> None:
    logger.info("%s: its layers are not fused, because of %s: %s", owner, name, reason)
