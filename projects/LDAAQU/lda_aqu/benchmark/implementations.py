"""What can be measured: the backends of LDA-AQU, the published algorithm, every upsampler."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import InputError
from ..ops import BACKENDS
from ..upsampler_arguments import parse_upsampler
from ..upsamplers import UPSAMPLER_REGISTRY, Upsampler, build_upsampler
from .published_algorithm import PublishedLDAAQU
from .settings import FPN_CHANNELS

PUBLISHED = "published algorithm"


@dataclass(frozen=True)
class Implementation:
    """An upsampler, by its label in tables, its name in the registry and its options."""

    label: str
    upsampler: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_reference(self) -> bool:
        """Whether it is the published algorithm."""
        return self.label == PUBLISHED

    @property
    def is_as_published(self) -> bool:
        """Whether it is to give the results of the published algorithm, computed in another way."""
        as_published = self.upsampler == "LDAAQU" and self.options.keys() <= {"backend"}
        return as_published and not self.is_reference

    def build(self, channels: int) -> Upsampler:
        """The upsampler; InputError for options or channels that it cannot have."""
        if self.is_reference:
            return PublishedLDAAQU(channels)
        return build_upsampler(self.upsampler, channels, **self.options)


def parse_implementation(text: str) -> Implementation:
    """``"LDAAQU"``, or ``"LDAAQU:reduction=16,num_heads=2"`` with options of the constructor.

    InputError where it is not of this form, or names what there is not.
    """
    name, options = parse_upsampler(text)
    implementation = Implementation(text, name, options)
    implementation.build(FPN_CHANNELS)  # which raises before anything is measured
    return implementation


def select_implementations(names: Sequence[str] | None, device: str) -> list[Implementation]:
    """What to measure: of ``names``, upsamplers with or without options, or all that there are.

    "LDAAQU" without options stands for each backend that can run on ``device``. Where LDA-AQU is
    among them, the published algorithm is too, and comes first.

    Raises:
        InputError: a name that is not known, or a backend that cannot run, with the reason.
    """
    reasons = backend_reasons(device)
    result = []
    for name in names or ("LDAAQU", *(name for name in UPSAMPLER_REGISTRY if name != "LDAAQU")):
        implementation = parse_implementation(name)
        backend = implementation.options.get("backend")
        if name == "LDAAQU":
            result += [
                Implementation(f"LDAAQU ({backend})", "LDAAQU", {"backend": backend})
                for backend, reason in reasons.items()
                if not reason
            ]
        elif reasons.get(backend):
            raise InputError(f"{name}: {backend!r} cannot run on {device}: {reasons[backend]}")
        else:
            result.append(implementation)
    if any(implementation.is_as_published for implementation in result):
        result.insert(0, Implementation(PUBLISHED, "LDAAQU"))
    return result


def backend_reasons(device: str) -> dict[str, str]:
    """For each backend why it cannot run on a device; empty if it can."""
    return {name: b.unavailable(torch.device(device)) for name, b in BACKENDS.items()}
