"""The sizes at which upsamplers are measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError

FPN_CHANNELS = 256
COARSEST_STRIDE = 32


@dataclass(frozen=True)
class Step:
    """One upsampling: a map of ``channels`` from ``input_size`` to ``output_size``, (H, W) each."""

    name: str
    channels: int
    input_size: tuple[int, int]
    output_size: tuple[int, int]


def parse_size(text: str) -> tuple[int, int]:
    """``"800x1344"``, height and width in pixels, to (800, 1344).

    Raises:
        InputError: not two positive whole numbers.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"size {text!r}: give positive HEIGHTxWIDTH, e.g. 800x1344")
    return int(parts[0]), int(parts[1])


def fpn_steps(image_size: tuple[int, int], channels: int = FPN_CHANNELS) -> list[Step]:
    """The steps P5->P4, P4->P3 and P3->P2 of a pyramid over an image, (H, W).

    The image is padded to a multiple of 32 first, as Detectron2 does.
    """
    padded = [-(-side // COARSEST_STRIDE) * COARSEST_STRIDE for side in image_size]
    levels = {n: (padded[0] // 2**n, padded[1] // 2**n) for n in (5, 4, 3, 2)}
    return [Step(f"P{n}->P{n - 1}", channels, levels[n], levels[n - 1]) for n in (5, 4, 3)]


def resolution_sweep(sides: Sequence[int]) -> list[Step]:
    """Square maps of these sides, 256 channels, upsampled by 2.

    Raises:
        InputError: a side is not positive.
    """
    return [_doubling(f"{side}x{side}", FPN_CHANNELS, side) for side in sides]


def channel_sweep(channels: Sequence[int]) -> list[Step]:
    """Maps of 64 x 64 with these numbers of channels, upsampled by 2.

    Raises:
        InputError: a number is not positive.
    """
    return [_doubling(f"{number} channels", number, 64) for number in channels]


def _doubling(name: str, channels: int, side: int) -> Step:
    if channels < 1 or side < 1:
        raise InputError(f"a map of {channels} channels and side {side}: both must be positive")
    return Step(name, channels, (side, side), (2 * side, 2 * side))
