"""The values that the keys of a config may have, where their type allows more."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    ROI_HEADS_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from fvcore.common.registry import Registry

from .. import modeling  # noqa: F401  (registers the builders)
from ..errors import InputError
from .config_merge import leaves, shown


class _Rule(NamedTuple):
    """What a value, and each element of a list, must be."""

    holds: Callable[[Any], bool]
    allowed: str


def _at_least(low: float) -> _Rule:
    return _Rule(lambda value: value >= low, f"at least {low}")


def _one_of(*values: Any) -> _Rule:
    return _Rule(lambda value: value in values, f"one of {', '.join(map(repr, values))}")


def _registered(registry: Registry) -> _Rule:
    return _Rule(
        lambda value: value in registry,
        f"one of {', '.join(sorted(name for name, _ in registry))}",
    )


_POSITIVE = _Rule(lambda value: value > 0, "above 0")
_SHARE = _Rule(lambda value: 0 <= value <= 1, "from 0 to 1")
_NAME = _Rule(lambda value: isinstance(value, str) and value != "", "a name")

_RULES = {
    "DATALOADER.NUM_WORKERS": _at_least(0),
    "DATALOADER.SAMPLER_TRAIN": _one_of(
        "TrainingSampler",
        "RepeatFactorTrainingSampler",
        "WeightedTrainingSampler",
        "WeightedCategoryTrainingSampler",
    ),
    "DATASETS.TRAIN": _NAME,
    "DATASETS.TEST": _NAME,
    "INPUT.CROP.SIZE": _POSITIVE,
    "INPUT.CROP.TYPE": _one_of("absolute", "absolute_range", "relative", "relative_range"),
    "INPUT.FORMAT": _one_of("BGR", "RGB", "L", "YUV-BT.601"),
    "INPUT.MASK_FORMAT": _one_of("polygon", "bitmask"),
    "INPUT.MAX_SIZE_TEST": _at_least(1),
    "INPUT.MAX_SIZE_TRAIN": _at_least(1),
    "INPUT.MIN_SIZE_TEST": _at_least(0),
    "INPUT.MIN_SIZE_TRAIN": _at_least(1),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": _one_of("choice", "range"),
    "INPUT.RANDOM_FLIP": _one_of("horizontal", "vertical", "none"),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": _POSITIVE,
    "MODEL.ANCHOR_GENERATOR.SIZES": _POSITIVE,
    "MODEL.BACKBONE.FREEZE_AT": _at_least(0),
    "MODEL.BACKBONE.NAME": _registered(BACKBONE_REGISTRY),
    "MODEL.FPN.OUT_CHANNELS": _at_least(1),
    "MODEL.META_ARCHITECTURE": _registered(META_ARCH_REGISTRY),
    "MODEL.PIXEL_STD": _POSITIVE,
    "MODEL.RESNETS.DEPTH": _one_of(18, 34, 50, 101, 152),
    "MODEL.RETINANET.NMS_THRESH_TEST": _SHARE,
    "MODEL.RETINANET.NUM_CLASSES": _at_least(1),
    "MODEL.RETINANET.SCORE_THRESH_TEST": _SHARE,
    "MODEL.ROI_BOX_HEAD.FC_DIM": _at_least(1),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": _at_least(1),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": _at_least(1),
    "MODEL.ROI_HEADS.NAME": _registered(ROI_HEADS_REGISTRY),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": _SHARE,
    "MODEL.ROI_HEADS.NUM_CLASSES": _at_least(1),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": _SHARE,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": _SHARE,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": _at_least(1),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": _at_least(1),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": _at_least(1),
    "MODEL.RPN.NMS_THRESH": _SHARE,
    "MODEL.RPN.POSITIVE_FRACTION": _SHARE,
    "MODEL.RPN.POST_NMS_TOPK_TEST": _at_least(1),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": _at_least(1),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": _at_least(1),
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": _at_least(1),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": _at_least(1),
    "MODEL.SEM_SEG_HEAD.NAME": _registered(SEM_SEG_HEADS_REGISTRY),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": _at_least(1),
    "MODEL.UPERNET.AUX_CHANNELS": _at_least(1),
    "MODEL.UPERNET.AUX_WEIGHT": _at_least(0),
    "MODEL.UPERNET.DROPOUT": _Rule(lambda value: 0 <= value < 1, "at least 0, below 1"),
    "MODEL.UPERNET.POOL_SCALES": _at_least(1),
    "OUTPUT_DIR": _NAME,
    "SOLVER.ACCUMULATION_STEPS": _at_least(1),
    "SOLVER.AMP.DTYPE": _one_of("float16", "bfloat16"),
    "SOLVER.BASE_LR": _POSITIVE,
    "SOLVER.CHECKPOINT_PERIOD": _at_least(1),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": _one_of("value", "norm"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": _POSITIVE,
    "SOLVER.GAMMA": _POSITIVE,
    "SOLVER.IMS_PER_BATCH": _at_least(1),
    "SOLVER.LR_SCHEDULER_NAME": _one_of(
        "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR", "WarmupPolyLR"
    ),
    "SOLVER.MAX_ITER": _at_least(1),
    "SOLVER.MOMENTUM": _Rule(lambda value: 0 <= value < 1, "at least 0, below 1"),
    "SOLVER.STEPS": _at_least(0),
    "SOLVER.WARMUP_FACTOR": _SHARE,
    "SOLVER.WARMUP_ITERS": _at_least(0),
    "SOLVER.WEIGHT_DECAY": _at_least(0),
    "TEST.DETECTIONS_PER_IMAGE": _at_least(1),
    "TEST.EVAL_PERIOD": _at_least(0),
}


def check_values(cfg: CfgNode) -> None:
    """Check the values that are often wrong, and that every number is finite.

    Raises:
        InputError: names the key, the value and what is allowed.
    """
    _check_numbers(cfg, "")
    for key, rule in _RULES.items():
        value = cfg
        for part in key.split("."):
            value = value[part]
        if not all(map(rule.holds, leaves(value))):
            raise InputError(f"{key} {shown(value)} must be {rule.allowed}")
    _check_together(cfg)


def _check_numbers(cfg: CfgNode, prefix: str) -> None:
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            _check_numbers(value, f"{prefix}{name}.")
        elif any(isinstance(leaf, float) and not math.isfinite(leaf) for leaf in leaves(value)):
            raise InputError(f"{prefix}{name} {shown(value)} must be finite")


def _check_together(cfg: CfgNode) -> None:
    """Raise InputError where values do not go with each other."""
    if list(cfg.SOLVER.STEPS) != sorted(set(cfg.SOLVER.STEPS)):
        raise InputError(f"SOLVER.STEPS {cfg.SOLVER.STEPS} must increase")
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if not sizes or (cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) != 2):
        raise InputError(
            f"INPUT.MIN_SIZE_TRAIN {sizes} must have one value or more, "
            "and two where INPUT.MIN_SIZE_TRAIN_SAMPLING is 'range'"
        )
    if len(cfg.INPUT.CROP.SIZE) != 2:
        raise InputError(f"INPUT.CROP.SIZE {cfg.INPUT.CROP.SIZE} must have two values")
    channels = 1 if cfg.INPUT.FORMAT == "L" else 3
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if len(cfg.MODEL[key]) != channels:
            raise InputError(
                f"MODEL.{key} {cfg.MODEL[key]} must have {channels} values, "
                f"as INPUT.FORMAT is {cfg.INPUT.FORMAT!r}"
            )
