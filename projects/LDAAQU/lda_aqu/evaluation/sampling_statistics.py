"""How far the upsamplers of a model look, and how they weigh what they see."""

import math
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..upsamplers import LAU, Sampling


class SamplingStatistics(NamedTuple):
    """Of one upsampler: means over all output pixels, groups and heads of all images.

    Lengths are in output pixels. Shares are of the attention, which for each pixel is 1.
    """

    offset: float
    """Length of an offset."""
    distance: float
    """From the output pixel to what it reads, each point as it is weighed."""
    outside_window: float
    """Share that is outside the k_u x k_u output pixels around the output pixel."""
    off_map: float
    """Share that is beyond the map, where all is zero."""
    points: float
    """How many points share the attention: one over the sum of its squares."""


@torch.no_grad()
def sampling_statistics(
    model: nn.Module, batches: Iterable[list[dict[str, Any]]]
) -> dict[str, SamplingStatistics]:
    """Run a model, and measure what its upsamplers of local attention do.

    Args:
        model: a Detectron2 model in evaluation mode.
        batches: in Detectron2's input format.

    Returns:
        By the upsampler's name in the model, in the order in which they ran; of the RoI heads'
        too, where there are detections.

    Raises:
        InputError: the model has no such upsampler.
    """
    upsamplers = {name: m for name, m in model.named_modules() if isinstance(m, LAU)}
    if not upsamplers:
        raise InputError("the model has no upsampler of local attention (LDAAQU or its like)")
    sums: dict[str, Counter] = {}

    def add(name: str, module: LAU, args: tuple, kwargs: dict[str, Any], _: Tensor) -> None:
        values = _values(module.sampling(*args, **kwargs), args[0].shape[2:])
        total = sums.setdefault(name, Counter())
        for field, value in values._asdict().items():
            total[field] += value.double().sum().item()
        total["count"] += values.offset.numel()

    handles = [
        module.register_forward_hook(partial(add, name), with_kwargs=True)
        for name, module in upsamplers.items()
    ]
    try:
        for batch in batches:
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: SamplingStatistics(*(s[field] / s["count"] for field in SamplingStatistics._fields))
        for name, s in sums.items()
        if s["count"]
    }


def _values(sampling: Sampling, input_size: torch.Size) -> SamplingStatistics:
    """The statistics of each output pixel and slice of channels, as tensors (N, slices, Y, X)."""
    slices = math.lcm(sampling.offsets.shape[1], sampling.weights.shape[1])
    offsets, positions, weights = (
        t.float().repeat_interleave(slices // t.shape[1], 1) for t in sampling
    )
    radius = math.isqrt(weights.shape[2]) // 2
    steps = torch.arange(-radius, radius + 1.0, device=offsets.device)
    window = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).flatten(0, 1)
    reach = offsets + window[..., None, None]
    outside = reach.abs().amax(3) > radius + 0.5
    sizes = torch.tensor(input_size, device=positions.device)[:, None, None]
    # Bilinear sampling reads a point less than a pixel beyond the map in part.
    on_map = torch.minimum(positions + 1, sizes - positions).clamp(0, 1).prod(3)
    return SamplingStatistics(
        offset=offsets.norm(dim=3).mean(2),
        distance=(weights * reach.norm(dim=3)).sum(2),
        outside_window=(weights * outside).sum(2),
        off_map=(weights * (1 - on_map)).sum(2),
        points=1 / weights.square().sum(2),
    )
