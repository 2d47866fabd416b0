"""Whether an implementation of LDA-AQU computes what the published algorithm computes.

What is exact is the published algorithm in float64. In float64 an implementation must agree with it
to rounding. In a smaller type, or with autocast to one, its output must be about as near to it as
that of the published algorithm in that type is. Gradients of that type show gross errors alone:
positions are rounded, and where that moves one into another cell of the map, its gradient is
another. Which ones it moves is chance, and a single one can be a thousandth of all gradients.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from .implementations import Implementation
from .module_workload import ModuleWorkload
from .report import Row, Table
from .settings import Setting, Step

EXACT = (1e-10, 1e-9)
"""What output and gradients may be off by in float64."""
ROUNDING = {"float32": (1e-5, 3e-2), "bfloat16": (3e-2, 5e-1), "float16": (5e-3, 5e-1)}
"""What they may be off by in smaller types however near the published algorithm is."""
FACTOR = 2
"""How many times as far off as the published algorithm in the same type they may be."""
NOTE = "errors: |a - b| / |b| of the output, and the largest of all gradients; b is exact"


def agreement_table(
    steps: Sequence[Step], implementations: Sequence[Implementation], setting: Setting
) -> Table:
    """Compare with the published algorithm what is to agree with it, in float64 and as set.

    In the column "agrees" is "NO" where an error is larger than what is allowed, or not a number.
    """
    published = [i for i in implementations if i.is_reference]
    checked = [i for i in implementations if i.is_as_published]
    rows = [
        row
        for step in tqdm(steps if published else (), desc="agreement", unit="step", leave=False)
        for row in _check(published[0], checked, step, setting)
    ]
    return Table("agreement", "Agreement with the published algorithm", rows, [NOTE])


def _check(
    published: Implementation, checked: Sequence[Implementation], step: Step, setting: Setting
) -> Iterator[Row]:
    in_float64 = replace(setting, dtype="float64", autocast=None)
    exact = _run(published, step, in_float64)
    limits = {in_float64: EXACT}
    if setting != in_float64:
        theirs = _errors(_run(published, step, setting), exact)
        least = ROUNDING[setting.autocast or setting.dtype]
        limits[setting] = [max(a, FACTOR * b) for a, b in zip(least, theirs, strict=True)]
    for implementation in checked:
        for tried, allowed in limits.items():
            errors = _errors(_run(implementation, step, tried), exact)
            yield {
                "implementation": implementation.label,
                "step": step.name,
                "dtype": tried.autocast or tried.dtype,
                "output error": errors[0],
                "allowed": allowed[0],
                "gradient error": errors[1],
                "allowed of gradients": allowed[1],
                "agrees": "yes" if errors[0] <= allowed[0] and errors[1] <= allowed[1] else "NO",
            }


def _run(implementation: Implementation, step: Step, setting: Setting) -> tuple[Tensor, ...]:
    """Output and gradients, of numbers that differ between dtypes by their rounding alone."""
    return ModuleWorkload(implementation, step, setting, backward=True).prepare()()


def _errors(actual: Sequence[Tensor], exact: Sequence[Tensor]) -> tuple[float, float]:
    output, *gradients = (
        (torch.dist(a.to(b.dtype), b) / b.norm()).item() if a.shape == b.shape else torch.inf
        for a, b in zip(actual, exact, strict=True)
    )
    return output, max(gradients, key=lambda error: (error != error, error))  # NaN is the largest
