"""Stopping a training whose losses are no numbers any more, with what is needed to see why."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from detectron2.utils import comm

from ..errors import InputError, one_line
from ..files import atomic_write


def check_finite(losses: Mapping[str, torch.Tensor]) -> None:
    """Raise FloatingPointError, with all losses, where one is NaN or infinite.

    Gradients that overflow under the loss scaling of float16 are none of its business.

    Args:
        losses: scalars by their names.
    """
    # In one transfer from the GPU.
    if not torch.stack([*losses.values()]).isfinite().all():
        values = {name: loss.item() for name, loss in losses.items()}
        wrong = next(name for name, loss in losses.items() if not loss.isfinite())
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        raise FloatingPointError(f"{wrong} is {values[wrong]} ({shown})")


def divergence(
    error: FloatingPointError, iteration: int, file_names: Sequence[str], output_dir: str
) -> InputError:
    """What to raise for an error of arithmetic, of ours or of Detectron2's, in a training step.

    Iteration, error and images are saved in ``<output_dir>/non_finite_loss_<rank>.json``.

    Args:
        error: the error.
        iteration: of the step.
        file_names: of the images of the last batch.
        output_dir: folder for the file.
    """
    path = Path(output_dir) / f"non_finite_loss_{comm.get_rank()}.json"
    report = {"iteration": iteration, "error": str(error), "file_names": list(file_names)}
    with atomic_write(path) as file:
        file.write(json.dumps(report, indent=2).encode())
    return InputError(
        f"iteration {iteration}: {one_line(error)}; the images are in {str(path)!r}. A lower "
        "SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS or SOLVER.CLIP_GRADIENTS often helps; with "
        "--resume they hold from the last checkpoint on"
    )
