"""What the parameters of our R-CNNs are called in the published implementation.

It is built on mmdetection 2.x: the names are those of mmdet/models/backbones/resnet.py,
dense_heads/rpn_head.py, roi_heads/bbox_heads/convfc_bbox_head.py and
roi_heads/mask_heads/fcn_mask_head.py there, and of its own necks/fpn_lau.py.
"""

import re

# Our names and theirs; the first that matches holds.
_NAMES = (
    ("backbone.bottom_up.stem.conv1.norm.{tensor}", "backbone.bn1.{tensor}"),
    ("backbone.bottom_up.stem.conv1.{tensor}", "backbone.conv1.{tensor}"),
    (
        "backbone.bottom_up.res{stage}.{block}.conv{conv}.norm.{tensor}",
        "backbone.layer{stage}.{block}.bn{conv}.{tensor}",
    ),
    (
        "backbone.bottom_up.res{stage}.{block}.conv{conv}.{tensor}",
        "backbone.layer{stage}.{block}.conv{conv}.{tensor}",
    ),
    (
        "backbone.bottom_up.res{stage}.{block}.shortcut.norm.{tensor}",
        "backbone.layer{stage}.{block}.downsample.1.{tensor}",
    ),
    (
        "backbone.bottom_up.res{stage}.{block}.shortcut.{tensor}",
        "backbone.layer{stage}.{block}.downsample.0.{tensor}",
    ),
    ("backbone.fpn_lateral{level}.{tensor}", "neck.lateral_convs.{level}.conv.{tensor}"),
    ("backbone.fpn_output{level}.{tensor}", "neck.fpn_convs.{level}.conv.{tensor}"),
    ("backbone.fpn_upsample{level}.{path}", "neck.upsample_modules.{level}.{path}"),
    ("proposal_generator.rpn_head.conv.{tensor}", "rpn_head.rpn_conv.{tensor}"),
    ("proposal_generator.rpn_head.objectness_logits.{tensor}", "rpn_head.rpn_cls.{tensor}"),
    ("proposal_generator.rpn_head.anchor_deltas.{tensor}", "rpn_head.rpn_reg.{tensor}"),
    ("roi_heads.box_head.fc{layer}.{tensor}", "roi_head.bbox_head.shared_fcs.{layer}.{tensor}"),
    ("roi_heads.box_predictor.cls_score.{tensor}", "roi_head.bbox_head.fc_cls.{tensor}"),
    ("roi_heads.box_predictor.bbox_pred.{tensor}", "roi_head.bbox_head.fc_reg.{tensor}"),
    (
        "roi_heads.mask_head.mask_fcn{layer}.{tensor}",
        "roi_head.mask_head.convs.{layer}.conv.{tensor}",
    ),
    ("roi_heads.mask_head.deconv.{tensor}", "roi_head.mask_head.upsample.{tensor}"),
    ("roi_heads.mask_head.predictor.{tensor}", "roi_head.mask_head.conv_logits.{tensor}"),
)

# What our count starts from, less what theirs does: our res2 is their layer1, our first pyramid
# level 2 their 0, our fc1 their 0.
_SHIFT = {"stage": 1, "block": 0, "conv": 0, "level": 2, "layer": 1}


def _pattern(template: str) -> re.Pattern[str]:
    """The names that a template stands for; ``{tensor}`` has no dots in it, ``{path}`` may."""
    kinds = {"tensor": r"\w+", "path": ".+"} | dict.fromkeys(_SHIFT, r"\d+")
    literal, *fields = re.split(r"\{", template)
    regex = re.escape(literal)
    for field in fields:
        name, literal = field.split("}")
        regex += f"(?P<{name}>{kinds[name]})" + re.escape(literal)
    return re.compile(regex)


_PATTERNS = tuple((_pattern(ours), theirs) for ours, theirs in _NAMES)


def published_name(name: str) -> str | None:
    """The published name of a parameter of ours; None where there is none."""
    for pattern, theirs in _PATTERNS:
        match = pattern.fullmatch(name)
        if match:
            fields = match.groupdict()
            counts = {f: int(value) - _SHIFT[f] for f, value in fields.items() if f in _SHIFT}
            return theirs.format(**fields | counts)
    return None


def is_upsampler(name: str) -> bool:
    """Whether a parameter of ours is one of an upsampler of the pyramid."""
    return name.startswith("backbone.fpn_upsample")
