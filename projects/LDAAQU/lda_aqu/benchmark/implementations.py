"""What can be measured: the backends of LDA-AQU, the published algorithm, every upsampler."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from ..errors import InputError
from ..upsamplers import UPSAMPLER_REGISTRY, Upsampler, build_upsampler
from .published_algorithm import PublishedLDAAQU

PUBLISHED = "published algorithm"


@dataclass(frozen=True)
class Implementation:
    """An upsampler with the options it is built with.

    Args:
        label: how tables call it.
        upsampler: its name in the registry.
        options: options of its constructor; the others have their defaults.
        reference: compute LDA-AQU by the published algorithm instead.
    """

    label: str
    upsampler: str
    options: dict[str, Any] = field(default_factory=dict)
    reference: bool = False

    def build(self, channels: int) -> Upsampler:
        """The upsampler for maps of ``channels``.

        Raises:
            InputError: options, or a number of channels, that it cannot have.
        """
        if self.reference:
            return PublishedLDAAQU(channels, **self.options)
        return build_upsampler(self.upsampler, channels, **self.options)


def parse_implementation(text: str) -> Implementation:
    """``"LDAAQU"``, or ``"LDAAQU:reduction=16,num_heads=2"`` with options of the constructor.

    Raises:
        InputError: no such upsampler, or not of this form.
    """
    name, _, rest = text.partition(":")
    UPSAMPLER_REGISTRY.get(name)
    options = {}
    for item in filter(None, rest.split(",")):
        option, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"{text!r}: options are NAME:OPTION=VALUE,OPTION=VALUE")
        options[option] = yaml.safe_load(value)
    return Implementation(text, name, options)


def runnable_backends(device: str) -> list[str]:
    """The backends of the operator that can run on this machine, the fastest first."""
    return ["plain"]


def lda_aqu_implementations(device: str) -> list[Implementation]:
    """LDA-AQU by the published algorithm, which comes first, and by every backend that can run."""
    return [
        Implementation(PUBLISHED, "LDAAQU", reference=True),
        *(Implementation(f"LDAAQU ({backend})", "LDAAQU") for backend in runnable_backends(device)),
    ]


def select_implementations(names: Sequence[str] | None, device: str) -> list[Implementation]:
    """What to measure: of ``names``, upsamplers with or without options, or all that there are.

    "LDAAQU" without options stands for :func:`lda_aqu_implementations`.

    Raises:
        InputError: a name that is not known.
    """
    result = []
    for name in names or ("LDAAQU", *(name for name in UPSAMPLER_REGISTRY if name != "LDAAQU")):
        implementation = parse_implementation(name)
        if name == "LDAAQU":
            result += lda_aqu_implementations(device)
        else:
            result.append(implementation)
    return result
