"""Whether an implementation of LDA-AQU computes what the published algorithm computes.

What is exact is the published algorithm in float64. In float64 an implementation must agree with it
to rounding. In a smaller type its output must be about as near to it as that of the published
algorithm in that type is. Gradients of that type show gross errors alone: positions are rounded,
and where that moves one into another cell of the map, its gradient is another. Which ones it moves
is chance, and a single one can be a thousandth of all gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .implementations import Implementation
from .shapes import Step
from .workload import Setting, Workload

Errors = tuple[float, float]

EXACT: Errors = (1e-10, 1e-9)
"""What output and gradients may be off by in float64."""
ROUNDING: dict[str, Errors] = {
    "float32": (1e-5, 3e-2),
    "bfloat16": (3e-2, 5e-1),
    "float16": (5e-3, 5e-1),
}
"""What they may be off by in smaller types however near the published algorithm is."""
FACTOR = 2
"""How many times as far off as the published algorithm in the same type they may be."""


@dataclass(frozen=True)
class Agreement:
    """How far one implementation is from the exact result at one step.

    Errors are relative to the norm of the tensor, |a - b| / |b|: of the output, and the largest of
    those of the gradients of the input and of each parameter.

    Args:
        label: of the implementation.
        step: name of the step.
        dtype: in which it computed.
        errors: of output and gradients.
        allowed: what they may be.
    """

    label: str
    step: str
    dtype: str
    errors: Errors
    allowed: Errors

    @property
    def holds(self) -> bool:
        """Whether both errors are as small as they must be; a NaN is not."""
        return all(error <= limit for error, limit in zip(self.errors, self.allowed, strict=True))

    def __str__(self) -> str:
        return (
            f"{self.label} at {self.step} in {self.dtype}: output off by {self.errors[0]:.1e} "
            f"({self.allowed[0]:.1e} is allowed), gradients by {self.errors[1]:.1e} "
            f"({self.allowed[1]:.1e} is allowed)"
        )


def check_agreement(
    published: Implementation,
    implementations: Sequence[Implementation],
    step: Step,
    setting: Setting,
) -> list[Agreement]:
    """Compare implementations with the published algorithm, in float64 and the setting's dtype."""
    exact = _run(published, step, setting, "float64")

    def errors(implementation: Implementation, dtype: str) -> Errors:
        return _errors(_run(implementation, step, setting, dtype), exact)

    allowed = {"float64": EXACT}
    if setting.dtype != "float64":
        output, gradient = errors(published, setting.dtype)
        least = ROUNDING[setting.dtype]
        allowed[setting.dtype] = max(least[0], FACTOR * output), max(least[1], FACTOR * gradient)
    return [
        Agreement(i.label, step.name, dtype, errors(i, dtype), limits)
        for i in implementations
        for dtype, limits in allowed.items()
    ]


def _run(
    implementation: Implementation, step: Step, setting: Setting, dtype: str
) -> tuple[Tensor, ...]:
    """Output and gradients, of numbers that differ between dtypes by their rounding alone."""
    return Workload(implementation, step, replace(setting, dtype=dtype), backward=True).prepare()()


def _errors(actual: Sequence[Tensor], exact: Sequence[Tensor]) -> Errors:
    output, *gradients = (_relative_error(a, b) for a, b in zip(actual, exact, strict=True))
    # A NaN is the largest.
    return output, max(gradients, key=lambda error: (error != error, error))


def _relative_error(actual: Tensor, exact: Tensor) -> float:
    if actual.shape != exact.shape:
        return torch.inf
    return (torch.dist(actual.to(exact.dtype), exact) / exact.norm()).item()
