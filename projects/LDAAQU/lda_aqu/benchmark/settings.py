"""Where, how and at which sizes everything is measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError

FPN_CHANNELS = 256
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}


@dataclass(frozen=True)
class Setting:
    """Where and how everything is run.

    Args:
        device: "cpu" or "cuda".
        dtype: of parameters and of maps; whole models are always in float32.
        autocast: dtype of ``torch.autocast``, and then of the maps, as a convolution before an
            upsampler puts them out; None for none.
        memory_format: of maps and weights.
        batch_size: maps or images at once.
    """

    device: str = "cpu"
    dtype: str = "float32"
    autocast: str | None = None
    memory_format: str = "contiguous"
    batch_size: int = 1

    @property
    def map_dtype(self) -> torch.dtype:
        """The dtype of the maps that are upsampled."""
        return DTYPES[self.autocast or self.dtype]

    def autocasting(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(self.device, DTYPES.get(self.autocast), self.autocast is not None)

    def randn(self, *shape: int, seed: int, dtype: torch.dtype) -> Tensor:
        """Standard normal numbers (N, C, H, W), the same for a seed but for their rounding."""
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.randn(*shape, generator=generator).to(self.device, dtype)
        return numbers.contiguous(memory_format=MEMORY_FORMATS[self.memory_format])


@dataclass(frozen=True)
class Step:
    """One upsampling: a map of ``channels`` from ``input_size`` to ``output_size``, (H, W) each."""

    name: str
    channels: int
    input_size: tuple[int, int]
    output_size: tuple[int, int]


def parse_size(text: str) -> tuple[int, int]:
    """``"800x1344"``, height and width in pixels, to (800, 1344); InputError if it is none."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"size {text!r}: give positive HEIGHTxWIDTH, e.g. 800x1344")
    return int(parts[0]), int(parts[1])


def fpn_steps(image_size: tuple[int, int]) -> list[Step]:
    """The steps P5->P4, P4->P3 and P3->P2 of a pyramid of 256 channels over an image, (H, W).

    The image is padded to a multiple of 32 first, as Detectron2 does.
    """
    height, width = (-(-side // 32) for side in image_size)
    levels = {n: (height * 2 ** (5 - n), width * 2 ** (5 - n)) for n in (5, 4, 3, 2)}
    return [Step(f"P{n}->P{n - 1}", FPN_CHANNELS, levels[n], levels[n - 1]) for n in (5, 4, 3)]


def square_steps(channels: Sequence[int], sides: Sequence[int]) -> list[Step]:
    """Square maps of all channels and sides, upsampled by 2; InputError if one is not positive."""
    if any(number < 1 for number in (*channels, *sides)):
        raise InputError(f"maps of {channels} channels and sides {sides}: all must be positive")
    return [Step(f"{c}x{s}x{s}", c, (s, s), (2 * s, 2 * s)) for c in channels for s in sides]
