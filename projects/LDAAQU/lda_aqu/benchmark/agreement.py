"""Whether an implementation of LDA-AQU computes what the published algorithm computes."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .workload import DTYPES, Workload

# Of output and gradients, relative. The gradient of a position has steps, where it passes from one
# cell of the map to the next: there rounding decides. In float32 it is the published algorithm that
# rounds most: its positions are relative to the whole map. Half precision rounds positions by hundredths
# of a pixel, so that several percent of them change cells: only what is plainly wrong shows there.
TOLERANCES = {
    "float64": (1e-10, 1e-9),
    "float32": (3e-5, 1e-2),
    "bfloat16": (3e-2, 6e-1),
    "float16": (5e-3, 6e-1),
}


@dataclass(frozen=True)
class Agreement:
    """How far one implementation is from the published algorithm at one step.

    The errors are relative to the norm of the tensor: |a - b| / |b|, of the output, and the
    largest of those of the gradients.
    """

    label: str
    step: str
    dtype: str
    output_error: float
    gradient_error: float

    @property
    def holds(self) -> bool:
        """Whether both errors are within the tolerance of the dtype."""
        tolerances = TOLERANCES[self.dtype]
        # Written so that a NaN does not pass.
        return self.output_error <= tolerances[0] and self.gradient_error <= tolerances[1]

    def __str__(self) -> str:
        allowed = "{:.0e} and {:.0e}".format(*TOLERANCES[self.dtype])
        return (
            f"{self.label} at {self.step}: output off by {self.output_error:.1e}, gradients by "
            f"{self.gradient_error:.1e}; allowed are {allowed} in {self.dtype}"
        )


def published_results(workload: Workload) -> list[Tensor]:
    """Output and gradients of the published algorithm, in float32 at least, for comparison."""
    setting = workload.setting
    if DTYPES[setting.dtype].itemsize < 4:
        setting = replace(setting, dtype="float32")
    return list(replace(workload, setting=setting, backward=True).prepare()())


def check_agreement(workload: Workload, expected: list[Tensor]) -> Agreement:
    """Compare what ``workload`` gives with what :func:`published_results` gave."""
    actual = replace(workload, backward=True).prepare()()
    errors = [_relative_error(a, b) for a, b in zip(actual, expected, strict=True)]
    return Agreement(
        workload.implementation.label,
        workload.step.name,
        workload.setting.dtype,
        errors[0],
        max(errors[1:], key=lambda error: (error != error, error)),  # a NaN is the largest
    )


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        return torch.inf
    return (torch.dist(actual.to(expected.dtype), expected) / expected.norm()).item()
