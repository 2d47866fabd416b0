"""The registry of upsamplers, and how one is built by its name."""

from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import TypeVar

from ..errors import InputError, did_you_mean
from .base import GuidedUpsampler, Upsampler, upsampler_options

T = TypeVar("T", bound=type[Upsampler])

# What the value of an option must be, by the type of its default.
_KINDS = {
    bool: (bool, "True or False"),
    int: (Integral, "an integer"),
    float: (Real, "a number"),
    str: (str, "a string"),
}


class UpsamplerRegistry:
    """Upsamplers by name.

    A registered class is called as ``cls(in_channels, scale_factor, **options)``; the module it
    makes is called as ``module(x, output_size=None)``, see :class:`Upsampler`. That of a
    :class:`GuidedUpsampler` is called as ``module(x, guide)``, and its class also with
    ``guide_channels``, where the guide has others than the input.

    (Detectron2's registry would serve, but the upsamplers must not need Detectron2.)
    """

    def __init__(self) -> None:
        self._classes: dict[str, type[Upsampler]] = {}

    def register(self, name: str = ""):
        """Class decorator that registers the class under ``name``, by default its own name.

        Raises:
            InputError: the name is taken by another class.
        """

        def add(cls: T) -> T:
            key = name or cls.__name__
            if key in self._classes:
                raise InputError(
                    f"an upsampler named {key!r} is already registered, by module "
                    f"{self._classes[key].__module__}; register this one under another name"
                )
            self._classes[key] = cls
            return cls

        return add

    def get(self, name: str) -> type[Upsampler]:
        """The class of that name.

        Raises:
            InputError: there is none; the message has the nearest name and lists all.
        """
        if name not in self._classes:
            raise InputError(
                f"unknown upsampler {name!r}{did_you_mean(name, self)}; known: {', '.join(self)}"
            )
        return self._classes[name]

    def unguided(self) -> list[str]:
        """Names of the upsamplers that need no guide."""
        return [name for name in self if not issubclass(self._classes[name], GuidedUpsampler)]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __contains__(self, name: str) -> bool:
        return name in self._classes


UPSAMPLER_REGISTRY = UpsamplerRegistry()


def build_upsampler(
    name: str,
    in_channels: int,
    scale_factor: float = 2,
    *,
    guide_channels: int | None = None,
    **options: object,
) -> Upsampler:
    """Build the upsampler registered as ``name``.

    Args:
        name: a name in :data:`UPSAMPLER_REGISTRY`.
        in_channels: channels of the map it is to upsample.
        scale_factor: output size over input size where the call names no ``output_size``.
        guide_channels: channels of a guided upsampler's guide; ``in_channels`` if not given.
        options: options of that upsampler; what is left out has its default.

    Raises:
        InputError: unknown name or option, values of another type than the option's default or
            that do not fit, or ``guide_channels`` where there is no guide; says what is allowed.
    """
    check_options(name, options)
    cls = UPSAMPLER_REGISTRY.get(name)
    if guide_channels is not None:
        if not issubclass(cls, GuidedUpsampler):
            raise InputError(f"{name} has no guide, so no guide_channels ({guide_channels})")
        options["guide_channels"] = guide_channels
    return cls(in_channels, scale_factor, **options)


def check_options(name: str, options: Mapping[str, object]) -> None:
    """Raise InputError unless the upsampler ``name`` has these options, with values of their types.

    Whether the values fit it, and the number of channels, is seen when it is built.
    """
    allowed = upsampler_options(UPSAMPLER_REGISTRY.get(name))
    for option, value in options.items():
        if option not in allowed:
            raise InputError(
                f"{name} has no option {option!r}{did_you_mean(option, allowed)}; "
                f"it has: {', '.join(allowed) or 'none'}"
            )
        default = type(allowed[option])
        if default not in _KINDS:  # as None: what else it may be, its constructor knows
            continue
        kind, description = _KINDS[default]
        # A bool is an Integral too.
        if not isinstance(value, kind) or isinstance(value, bool) != (default is bool):
            raise InputError(f"{option} must be {description}, got {value!r}")
