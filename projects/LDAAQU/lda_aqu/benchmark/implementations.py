"""What can be measured: the backends of LDA-AQU, the published algorithm, every upsampler."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml

from ..errors import InputError
from ..ops.backends import BACKENDS
from ..upsamplers import UPSAMPLER_REGISTRY, Upsampler, build_upsampler
from .published_algorithm import PublishedLDAAQU
from .shapes import FPN_CHANNELS

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

    @property
    def is_as_published(self) -> bool:
        """Whether it is to give the results of the published algorithm, computed in another way."""
        return (
            self.upsampler == "LDAAQU" and not self.reference and self.options.keys() <= {"backend"}
        )

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
        InputError: not of this form, or no upsampler, option or value that there is.
    """
    name, _, rest = text.partition(":")
    options = {}
    for item in filter(None, rest.split(",")):
        option, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"{text!r}: options are NAME:OPTION=VALUE,OPTION=VALUE")
        try:
            options[option] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"{text!r}: {value!r} is not a value") from error
    build_upsampler(name, FPN_CHANNELS, **options)  # which raises before anything is measured
    return Implementation(text, name, options)


def select_implementations(names: Sequence[str] | None, device: str) -> list[Implementation]:
    """What to measure: of ``names``, upsamplers with or without options, or all that there are.

    "LDAAQU" without options stands for each backend that can run on ``device``. Where LDA-AQU is
    among them, the published algorithm is too, and comes first.

    Raises:
        InputError: a name that is not known, or a backend that cannot run, with the reason.
    """
    result = []
    for name in names or ("LDAAQU", *(name for name in UPSAMPLER_REGISTRY if name != "LDAAQU")):
        implementation = parse_implementation(name)
        if name == "LDAAQU":
            result += [
                Implementation(f"LDAAQU ({backend})", "LDAAQU", {"backend": backend})
                for backend in BACKENDS
                if not _why_not(backend, device)
            ]
            continue
        backend = implementation.options.get("backend", "auto")
        if backend != "auto" and _why_not(backend, device):
            raise InputError(
                f"{name}: backend {backend!r} cannot run on {device}: {_why_not(backend, device)}"
            )
        result.append(implementation)
    if any(implementation.is_as_published for implementation in result):
        result.insert(0, Implementation(PUBLISHED, "LDAAQU", reference=True))
    return result


def describe_backends(device: str) -> str:
    """Which backends can run on a device, and why the others cannot."""
    reasons = {backend: _why_not(backend, device) for backend in BACKENDS}
    return "; ".join(
        f"{name} {f'cannot run: {reason}' if reason else 'runs'}"
        for name, reason in reasons.items()
    )


def _why_not(backend: str, device: str) -> str:
    return BACKENDS[backend].unavailable(torch.device(device))
