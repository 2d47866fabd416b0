"""How far the maps of a model's backbone are from those of another."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError


def relative_feature_change(
    model: nn.Module, baseline: nn.Module, batches: Iterable[list[dict[str, Any]]]
) -> dict[str, float]:
    """``||map - baseline's map|| / ||baseline's map||`` of each level, over all images.

    Args:
        model: a Detectron2 model in evaluation mode.
        baseline: another, which normalises and pads images alike.
        batches: in Detectron2's input format.

    Returns:
        The change by level, e.g. "p2", of the levels that both have.

    Raises:
        InputError: there is no such level, or a level is of another size.
    """
    changes, norms = Counter(), Counter()
    for batch in batches:
        new, old = _features(model, batch), _features(baseline, batch)
        levels = [level for level in old if level in new]
        if not levels:
            raise InputError(f"backbones have no level in common: {list(new)} and {list(old)}")
        for level in levels:
            if new[level].shape != old[level].shape:
                shapes = " and ".join(str(tuple(x[level].shape)) for x in (new, old))
                raise InputError(f"maps {level!r} are of different shapes: {shapes}")
            changes[level] += (new[level] - old[level]).double().square().sum().item()
            norms[level] += old[level].double().square().sum().item()
    return {level: (changes[level] / norms[level]) ** 0.5 for level in changes}


@torch.no_grad()
def _features(model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The maps that the backbone gives the rest of the model, which prepares the images."""
    kept = {}
    handle = model.backbone.register_forward_hook(lambda _, args, maps: kept.update(maps))
    try:
        model(batch)
    finally:
        handle.remove()
    return kept
