"""Whether an exported model predicts what its original does."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..errors import InputError

TOLERANCES = {"boxes": 0.1, "scores": 1e-3, "masks": 1e-2, "sem_seg": 1e-3}
"""The largest differences: in pixels; in probabilities; of logits, relative to the largest."""


def compare(expected: dict[str, Tensor], actual: dict[str, Tensor]) -> dict[str, float]:
    """Compare predictions for an image: see :class:`~.tensor_model.TensorModel`.

    Detections of equal scores may come in any order: those of the nearest boxes are compared. One
    of no higher score than all these may be missing.

    Returns:
        The largest difference of each of the outputs in TOLERANCES, in the units there.

    Raises:
        InputError: one is larger than its tolerance, or there are other detections; the message
            names the largest.
    """
    if "boxes" in expected:
        expected, actual = _matched(expected, actual)
    differences = {}
    for name in TOLERANCES.keys() & expected.keys():
        a, b = actual[name].double(), expected[name].double()
        if a.shape != b.shape:
            raise InputError(f"{name} are {tuple(a.shape)}, PyTorch's are {tuple(b.shape)}")
        scale = b.abs().max().clamp(min=1) if name == "sem_seg" and b.numel() else 1
        differences[name] = float((a - b).abs().max() / scale) if b.numel() else 0.0
    worst = max(differences, key=lambda name: _excess(name, differences[name]))
    if not _excess(worst, differences[worst]) <= 1:
        raise InputError(
            f"{worst} differ from PyTorch's by {differences[worst]:.3g}, and "
            f"{TOLERANCES[worst]:g} is allowed"
        )
    return {name: differences[name] for name in TOLERANCES if name in differences}


def _excess(name: str, difference: float) -> float:
    return np.inf if np.isnan(difference) else difference / TOLERANCES[name]


def _matched(
    expected: dict[str, Tensor], actual: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Both without the detections that the other has not, and the second in the first's order."""
    distance = torch.cdist(expected["boxes"], actual["boxes"], p=torch.inf).numpy()
    is_other = (expected["classes"][:, None] != actual["classes"]).numpy()
    pairs = linear_sum_assignment(np.where(is_other, 1e6, np.nan_to_num(distance, nan=1e5)))
    if is_other[pairs].any():
        raise InputError("detections are of other classes than PyTorch's")
    common = torch.cat([expected["scores"][pairs[0]], actual["scores"][pairs[1]]])
    lowest = common.min() if len(common) else -torch.inf
    matched = []
    for predictions, kept in zip((expected, actual), pairs, strict=True):
        is_alone = torch.ones_like(predictions["scores"], dtype=torch.bool)
        is_alone[kept] = False
        # The last may be on either side of the lowest score, or number, that is asked for.
        if not (predictions["scores"][is_alone] <= lowest + TOLERANCES["scores"]).all():
            raise InputError(
                f"there are {len(actual['boxes'])} detections, and PyTorch finds "
                f"{len(expected['boxes'])}"
            )
        names = {"boxes", "scores", "classes", "masks"} & predictions.keys()
        matched.append(predictions | {name: predictions[name][kept] for name in names})
    return matched[0], matched[1]
