"""What every upsampler is."""

import inspect
from math import isfinite
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError


class Upsampler(nn.Module):
    """Base of the upsamplers: maps (N, C, H, W) to (N, C, H', W') of the same dtype.

    A subclass implements ``forward(x, output_size=None)`` and asks :meth:`target_size` for
    (H', W'). Its constructor takes ``(in_channels, scale_factor=2, **options)``; each option has a
    default, which is also the default of the config key ``MODEL.<config_node>.<OPTION>``.

    Args:
        in_channels: C.
        scale_factor: H' / H and W' / W where no ``output_size`` is given; sizes are rounded down.

    Raises:
        InputError: ``in_channels`` is not a positive integer, or ``scale_factor`` not positive.
    """

    config_node: ClassVar[str] = ""
    """Name of the config node that holds the options, for those that have any."""

    def __init__(self, in_channels: int, scale_factor: float = 2) -> None:
        super().__init__()
        check_positive(in_channels=in_channels)
        if not (isfinite(scale_factor) and scale_factor > 0):
            raise InputError(f"scale_factor must be positive, got {scale_factor}")
        self.in_channels = in_channels
        self.scale_factor = scale_factor

    def target_size(self, x: Tensor, output_size: tuple[int, int] | None) -> tuple[int, int]:
        """The output's (H', W') for an input (N, C, H, W): ``output_size``, or H and W scaled.

        Raises:
            InputError: ``x`` is not (N, in_channels, H, W), or ``output_size`` is not two positive
                integers.
        """
        self._check_map(x, self.in_channels)
        if output_size is None:
            factor = self.scale_factor
            if float(factor).is_integer():  # then sizes stay symbolic while a model is exported
                height, width = (size * int(factor) for size in x.shape[2:])
            else:
                height, width = (int(size * factor) for size in x.shape[2:])
        else:
            height, width = self._sides(output_size)
        if height < 1 or width < 1:
            raise InputError(f"output_size must be positive, got {(height, width)}")
        return height, width

    def _sides(self, output_size: tuple[int, int]) -> tuple[int, int]:
        """The two of an ``output_size``, which are tensors while a model is traced."""
        if isinstance(output_size, Tensor) and output_size.dim() > 1:
            raise InputError(f"{type(self).__name__} takes no guide, but (height, width)")
        sides = output_size if isinstance(output_size, (tuple, list)) else ()
        if len(sides) != 2 or any(isinstance(side, (float, str)) for side in sides):
            raise InputError(
                f"output_size must be (height, width), two integers: got {output_size}"
            )
        return sides[0], sides[1]

    def _check_map(self, x: Tensor, channels: int, what: str = "") -> None:
        """Raise InputError unless ``x`` is (N, channels, H, W)."""
        if x.dim() != 4 or x.shape[1] != channels:
            raise InputError(
                f"{type(self).__name__} was built for {what}(N, {channels}, H, W), "
                f"got {tuple(x.shape)}"
            )

    def extra_repr(self) -> str:
        """What ``print`` shows of the module: those of its options, too, that it keeps by name."""
        names = ["in_channels", "scale_factor", *upsampler_options(type(self))]
        return ", ".join(f"{name}={vars(self)[name]!r}" for name in names if name in vars(self))


class GuidedUpsampler(Upsampler):
    """Base of the upsamplers that need the map they upsample to: the guide, (N, G, H', W').

    A subclass implements ``forward(x, guide)`` and asks :meth:`guide_size` for (H', W'). The size
    of the guide is the output's: any size, whatever ``scale_factor`` says. Callers that have a
    guide for some upsamplers and none for others tell them apart by this class.

    Args:
        in_channels: C.
        scale_factor: H' / H and W' / W, as a rule; the guide says it in each call.
        guide_channels: G; C where it is not given, as in the lateral maps of a feature pyramid.

    Raises:
        InputError: a value is not positive.
    """

    def __init__(
        self, in_channels: int, scale_factor: float = 2, *, guide_channels: int | None = None
    ) -> None:
        super().__init__(in_channels, scale_factor)
        self._set_guide_channels(guide_channels)

    def _set_guide_channels(self, guide_channels: int | None) -> None:
        """Set G, before layers are made that depend on it."""
        self.guide_channels = self.in_channels if guide_channels is None else guide_channels
        check_positive(guide_channels=self.guide_channels)

    def guide_size(self, x: Tensor, guide: Tensor) -> tuple[int, int]:
        """The output's (H', W'): the size of the guide of an input (N, C, H, W).

        Raises:
            InputError: ``x`` and ``guide`` are not (N, in_channels, H, W) and
                (N, guide_channels, H', W').
        """
        self._check_map(x, self.in_channels)
        self._check_map(guide, self.guide_channels, "guides ")
        if guide.shape[0] != x.shape[0]:
            raise InputError(f"x has a batch of {x.shape[0]}, its guide of {guide.shape[0]}")
        return guide.shape[2], guide.shape[3]

    def extra_repr(self) -> str:
        """What ``print`` shows of the module."""
        return f"{super().extra_repr()}, guide_channels={self.guide_channels}"


def upsampler_options(cls: type[Upsampler]) -> dict[str, object]:
    """The options of an upsampler's constructor and their defaults.

    Those of its base class are among them where the constructor takes ``**options``.
    """
    options: dict[str, object] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        # All but self, in_channels and scale_factor, which every constructor has, and the other
        # that says what the maps are.
        parameters = list(inspect.signature(base.__init__).parameters.values())[3:]
        named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
        options |= {p.name: p.default for p in named if p.name != "guide_channels"}
        if named == parameters:
            break
    return options


def upsample_to(upsampler: nn.Module, x: Tensor, lateral: Tensor, *, crop: bool = False) -> Tensor:
    """Bring a map to the size of the finer one that it is to be fused with.

    Args:
        upsampler: an :class:`Upsampler`, or any module of its contract. A :class:`GuidedUpsampler`
            has the finer map as its guide.
        x: (N, C, H, W).
        lateral: (N, C', H', W'), the finer map.
        crop: whether an unguided upsampler is left its own factor, and rows and columns beyond
            ``lateral`` are cut off; else it is asked for the size of ``lateral``.

    Returns:
        (N, C, H', W').
    """
    if isinstance(upsampler, GuidedUpsampler):
        return upsampler(x, lateral)
    height, width = lateral.shape[2:]
    if crop:
        return upper_left(upsampler(x), height, width)
    return upsampler(x, output_size=(height, width))


def upper_left(x: Tensor, height: int, width: int) -> Tensor:
    """(N, C, H, W) without what lies beyond ``height`` and ``width``."""
    if torch.compiler.is_compiling() and not torch.onnx.is_in_onnx_export():
        # A slice would bind an exported program to maps of which nothing is cut off, or something.
        return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))
    return x[:, :, :height, :width]


def check_positive(**numbers: int) -> None:
    """Raise InputError, naming the argument, unless every number is a positive integer."""
    for name, number in numbers.items():
        if not isinstance(number, Integral):
            raise InputError(f"{name} must be an integer, got {number!r}")
        if number < 1:
            raise InputError(f"{name} must be positive, got {number}")


def check_odd(**sizes: int) -> None:
    """Raise InputError, naming the option, unless every size is odd and positive."""
    for name, size in sizes.items():
        if size < 1 or size % 2 == 0:
            raise InputError(f"{name} must be odd and positive, got {size}")


def divide(name: str, value: int, divisor_name: str, divisor: int) -> int:
    """``value / divisor``, or an InputError that names both if it is not whole."""
    if divisor < 1 or value % divisor:
        raise InputError(f"{name} ({value}) is not a multiple of {divisor_name} ({divisor})")
    return value // divisor
