"""Renaming the weights of a checkpoint, with every tensor accounted for."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from .. import modeling  # noqa: F401  (registers the builders)
from ..errors import InputError
from ..upsamplers import Upsampler
from .checkpoint_files import check_output, read_checkpoint, write_checkpoint
from .names import is_upsampler, published_name

# The entry of a checkpoint that holds its weights, by its format.
WEIGHTS_KEYS = {"detectron2": "model", "mmdetection": "state_dict"}

COUNTER = "num_batches_tracked"

# Published tensors that our models have no place for, and why they need none.
_NOT_NEEDED = (
    # mmcv saves buffers that are not persistent as well: mmcv/runner/checkpoint.py.
    (r"neck\.upsample_modules\.\d+\.base_offset", "constant: the positions of the window"),
    (rf".+\.{COUNTER}", "counts training batches; frozen statistics do not use it"),
)


class Row(NamedTuple):
    """What became of a tensor.

    ``source`` is its name ("" if it was added), ``target`` its new name ("" if it was left out).
    """

    source: str
    target: str
    note: str = ""


def convert_checkpoint(
    cfg: CfgNode,
    source: Path,
    output: Path,
    to: str = "detectron2",
    *,
    upsamplers_only: bool = False,
    into: Path | None = None,
    trusted: bool = False,
) -> list[Row]:
    """Convert a checkpoint file; ``output`` is written at the end, as a whole.

    Args:
        cfg: config of the model that the weights are of.
        source: a checkpoint of the published implementation, or, on the way back, of ours.
        output: the .pth file to write.
        to: the format to convert to: "detectron2" (ours) or "mmdetection" (the published one).
        upsamplers_only: convert the weights of the upsamplers alone.
        into: a checkpoint in the format ``to``, whose other weights are written with those that
            were converted; without it these are all.
        trusted: read the files even if this runs code that they bring.

    Returns:
        What became of each tensor, and of the file's other entries.

    Raises:
        InputError: a file cannot be read or written, or does not fit the model.
    """
    check_output(output, [path for path in (source, into) if path])
    (origin,) = WEIGHTS_KEYS.keys() - {to}
    model = _model_without_values(cfg)
    shapes = _shapes(model)
    _pairs(shapes, upsamplers_only)  # what is wrong with the config is no fault of the checkpoint
    checkpoint = read_checkpoint(source, WEIGHTS_KEYS[origin], trusted)
    weights = checkpoint.pop(WEIGHTS_KEYS[origin])
    kept = {}
    if into:
        kept = read_checkpoint(into, WEIGHTS_KEYS[to], trusted)[WEIGHTS_KEYS[to]]
        _check_rest(into, kept, model, to)
    try:
        converted, rows = convert_weights(weights, shapes, to, upsamplers_only=upsamplers_only)
    except InputError as error:
        raise InputError(
            f"checkpoint {str(source)!r} does not fit the model of the config: {error}"
        ) from error
    # mmdetection looks for class names in the entry "meta", and uses COCO's if there are none.
    extra = {"meta": {}} if to == "mmdetection" else {}
    write_checkpoint(output, {**extra, WEIGHTS_KEYS[to]: {**kept, **converted}})
    return [
        *rows,
        *(Row(entry, "", "entry of the file, not of the weights") for entry in checkpoint),
    ]


def weight_shapes(cfg: CfgNode) -> dict[str, torch.Size]:
    """The shapes of the tensors in the state dict of a config's model, which is not allocated."""
    return _shapes(_model_without_values(cfg))


def _model_without_values(cfg: CfgNode) -> nn.Module:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def convert_weights(
    weights: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    to: str = "detectron2",
    *,
    upsamplers_only: bool = False,
) -> tuple[dict[str, Tensor], list[Row]]:
    """Rename weights; their values, dtypes and shapes stay.

    Args:
        weights: by their names in the other format.
        shapes: of the tensors of our model's state dict, by our names.
        to: the format to convert to: see :func:`convert_checkpoint`.
        upsamplers_only: convert the weights of the upsamplers alone.

    Returns:
        The weights by their new names, and what became of each tensor.

    Raises:
        InputError: tensors are missing, of another shape, or unknown.
    """
    pairs = _pairs(shapes, upsamplers_only)
    if to == "detectron2":
        targets = {theirs: ours for ours, theirs in pairs.items()}
        expected = {theirs: shapes[ours] for ours, theirs in pairs.items()}
    else:
        targets = pairs
        expected = {ours: shapes[ours] for ours in pairs}

    rows, unknown = [], []
    for name in weights:
        if name in targets:
            rows.append(Row(name, targets[name]))
        elif reason := _reason_to_leave_out(name, upsamplers_only):
            rows.append(Row(name, "", reason))
        else:
            unknown.append(name)
    _check(weights, expected, unknown)

    converted = {target: weights[name] for name, target in targets.items()}
    if to == "mmdetection":
        # A BatchNorm2d has a counter, and ours, where they are frozen, have none.
        for target in list(converted):
            counter = f"{target.removesuffix('running_var')}{COUNTER}"
            if target.endswith(".running_var") and counter not in converted:
                converted[counter] = torch.tensor(0)
                rows.append(Row("", counter, "added: 0"))
    return converted, rows


def _pairs(shapes: Mapping[str, torch.Size], upsamplers_only: bool) -> dict[str, str]:
    """The names of what is to be converted, ours and the published ones.

    Raises:
        InputError: there is nothing, or the published implementation has no such tensor.
    """
    pairs = {n: published_name(n) for n in shapes if is_upsampler(n) or not upsamplers_only}
    if not pairs:
        raise InputError(
            "the upsamplers of the config's model have no weights (MODEL.FPN.UPSAMPLER)"
        )
    for name, theirs in pairs.items():
        if theirs is None:
            hint = ': set MODEL.FPN.NORM ""' if re.match(r"backbone\.fpn_\w+\.norm", name) else ""
            raise InputError(
                f"the model of the config has {name!r}, of which the published implementation has "
                f"no counterpart{hint}"
            )
    return pairs


def _check_rest(path: Path, kept: Mapping[str, Tensor], model: nn.Module, to: str) -> None:
    """Raise InputError unless a checkpoint has the rest of a model: all but its upsamplers."""
    upsamplers = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, Upsampler))
    rest = [n for n in model.state_dict() if not n.startswith(upsamplers)]
    if to == "mmdetection":
        rest = [theirs for theirs in map(published_name, rest) if theirs]
    rest = [n for n in rest if not n.endswith(COUNTER)]  # which frozen statistics have not
    lacking = [n for n in rest if n not in kept]
    if lacking:
        raise InputError(
            f"checkpoint {str(path)!r} is of another model than the config's: it lacks "
            f"{len(lacking)} of {len(rest)} tensors beside those of upsamplers, the first is "
            f"{lacking[0]}"
        )


def _reason_to_leave_out(name: str, upsamplers_only: bool) -> str:
    """Why a tensor that is not to be converted may be left out; "" if it may not."""
    for pattern, reason in _NOT_NEEDED:
        if re.fullmatch(pattern, name):
            return reason
    return "not of an upsampler of the model" if upsamplers_only else ""


def _check(
    weights: Mapping[str, Tensor], expected: Mapping[str, torch.Size], unknown: list[str]
) -> None:
    """Raise InputError unless all weights are there, in their shapes, and none is unknown."""
    missing = [name for name in expected if name not in weights]
    misshapen = [n for n in expected if n in weights and weights[n].shape != expected[n]]
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    if misshapen:
        first = misshapen[0]
        problems.append(
            f"{len(misshapen)} have another shape, the first is {first}, "
            f"{tuple(weights[first].shape)} instead of {tuple(expected[first])}"
        )
    if unknown:
        problems.append(f"{len(unknown)} have no place in it, the first is {unknown[0]}")
    if problems:
        raise InputError("; ".join(problems))
