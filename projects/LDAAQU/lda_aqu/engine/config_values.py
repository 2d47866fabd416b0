"""What values keys may have, where nothing else would say so before the training is under way."""

import math
import operator
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from detectron2.config import CfgNode

from ..errors import InputError, shorten
from ..modeling import AUGMENTED
from .config_merge import leaves
from .optimizer import OPTIMIZERS

# A value, or each element of a list, must be so.
_RULES: list[tuple[str, Callable[[Any], bool], str]] = [
    (
        "INPUT.MAX_SIZE_TEST INPUT.MAX_SIZE_TRAIN INPUT.MIN_SIZE_TRAIN "
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE MODEL.RPN.BATCH_SIZE_PER_IMAGE "
        "MODEL.RPN.POST_NMS_TOPK_TEST MODEL.RPN.POST_NMS_TOPK_TRAIN "
        "MODEL.RPN.PRE_NMS_TOPK_TEST MODEL.RPN.PRE_NMS_TOPK_TRAIN "
        "SOLVER.ACCUMULATION_STEPS SOLVER.CHECKPOINT_PERIOD SOLVER.MAX_ITER "
        "TEST.AUG.MAX_SIZE TEST.AUG.MIN_SIZES TEST.DETECTIONS_PER_IMAGE",
        lambda value: value >= 1,
        "at least 1",
    ),
    (
        "DATALOADER.NUM_WORKERS INPUT.MIN_SIZE_TEST SOLVER.WARMUP_ITERS TEST.EVAL_PERIOD",
        lambda value: value >= 0,
        "at least 0",
    ),
    (
        "INPUT.CROP.SIZE MODEL.ANCHOR_GENERATOR.SIZES MODEL.PIXEL_STD SOLVER.BASE_LR SOLVER.GAMMA "
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
        lambda value: value > 0,
        "above 0",
    ),
    (
        "MODEL.RETINANET.NMS_THRESH_TEST MODEL.RETINANET.SCORE_THRESH_TEST "
        "MODEL.ROI_HEADS.NMS_THRESH_TEST MODEL.ROI_HEADS.POSITIVE_FRACTION "
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST MODEL.RPN.NMS_THRESH MODEL.RPN.POSITIVE_FRACTION "
        "SOLVER.MOMENTUM SOLVER.WARMUP_FACTOR",
        lambda value: 0 <= value <= 1,
        "from 0 to 1",
    ),
    (
        "DATASETS.TRAIN DATASETS.TEST OUTPUT_DIR",
        lambda value: isinstance(value, str) and value,
        "a name",
    ),
    ("INPUT.FORMAT", ("BGR", "RGB", "L", "YUV-BT.601").__contains__, "BGR, RGB, L or YUV-BT.601"),
    ("INPUT.MASK_FORMAT", ("polygon", "bitmask").__contains__, "polygon or bitmask"),
    (
        "MODEL.KEYPOINT_ON MODEL.LOAD_PROPOSALS",
        operator.not_,
        "False: it is not supported",
    ),
    (
        "MODEL.ANCHOR_GENERATOR.NAME MODEL.PROPOSAL_GENERATOR.NAME MODEL.ROI_HEADS.NAME",
        lambda value: value not in ("RotatedAnchorGenerator", "RRPN", "RROIHeads"),
        "another one: rotated boxes are not supported",
    ),
    ("SEED", lambda value: value < 2**31, "below 2**31"),
    ("VERSION", (2).__eq__, "2"),
    ("SOLVER.OPTIMIZER", OPTIMIZERS.__contains__, " or ".join(OPTIMIZERS)),
    ("SOLVER.AMP.DTYPE", ("float16", "bfloat16").__contains__, "float16 or bfloat16"),
]


def check_values(cfg: CfgNode) -> None:
    """Check the values that nothing else refuses, or nothing before the training is under way.

    Raises:
        InputError: names the key, the value and what is allowed.
    """
    for keys, holds, allowed in _RULES:
        for key in keys.split():
            value = attrgetter(key)(cfg)
            if not all(map(holds, leaves(value))):
                raise InputError(f"{key} {shorten(value)} must be {allowed}")
    for key in ("INPUT.MIN_SIZE_TRAIN", "TEST.AUG.MIN_SIZES"):
        if attrgetter(key)(cfg) in ((), []):
            raise InputError(f"{key} is empty: it must have one value or more")
    if cfg.TEST.AUG.ENABLED and cfg.MODEL.META_ARCHITECTURE not in AUGMENTED:
        raise InputError(
            f"TEST.AUG.ENABLED True: MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} has no "
            f"test-time augmentation; allowed are {', '.join(AUGMENTED)}"
        )
    value_range = cfg.INPUT.VALUE_RANGE
    numbers = all(type(v) in (int, float) and math.isfinite(v) for v in value_range)
    if value_range and not (numbers and len(value_range) == 2 and value_range[0] < value_range[1]):
        raise InputError(
            f"INPUT.VALUE_RANGE {value_range} must be empty, or two numbers, the lower one first"
        )
    channels = 1 if cfg.INPUT.FORMAT == "L" else 3
    if len(cfg.MODEL.PIXEL_MEAN) != channels:
        raise InputError(
            f"MODEL.PIXEL_MEAN {cfg.MODEL.PIXEL_MEAN} must have {channels} values, "
            f"as INPUT.FORMAT is {cfg.INPUT.FORMAT}"
        )
