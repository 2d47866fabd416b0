"""The config keys that this project adds to Detectron2's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import InputError
from .upsamplers import UPSAMPLER_REGISTRY, Upsampler, build_upsampler, upsampler_options

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def add_lda_aqu_config(cfg: CfgNode) -> None:
    """Add the project's keys, with their defaults, to a Detectron2 config.

    The options of the upsamplers are keys too: the option ``reduction`` of LDAAQU, whose
    ``config_node`` is LDA_AQU, is ``MODEL.LDA_AQU.REDUCTION``.
    """
    node = type(cfg)  # so that importing this module does not import Detectron2

    # The upsampler of the top-down path: a name in UPSAMPLER_REGISTRY. Read by the backbone
    # builders build_resnet_lda_aqu_fpn_backbone and build_retinanet_resnet_lda_aqu_fpn_backbone.
    cfg.MODEL.FPN.UPSAMPLER = "LDAAQU"
    # Where the top-down path starts: "detectron2" (at P5; P6 and P7 are made from what is below)
    # or "published" (P6, and P7 in RetinaNet, are strided convolutions and are its top).
    cfg.MODEL.FPN.TOPOLOGY = "detectron2"

    for name in UPSAMPLER_REGISTRY:
        cls = UPSAMPLER_REGISTRY.get(name)
        if cls.config_node and cls.config_node not in cfg.MODEL:
            cfg.MODEL[cls.config_node] = node(
                {option.upper(): default for option, default in upsampler_options(cls).items()}
            )

    # A user's own datasets in COCO format, registered under the names of the entries:
    #   COCO_FORMAT: {pets_train: {ANNOTATIONS: pets/train.json, IMAGES: pets/images}, ...}
    # Relative paths are relative to $DETECTRON2_DATASETS ("datasets" where it is not set).
    cfg.DATASETS.COCO_FORMAT = node(new_allowed=True)


def build_upsampler_from_config(
    cfg: CfgNode, key: str, in_channels: int, channels_key: str
) -> Upsampler:
    """Build the upsampler, by a factor of 2, that a config key names.

    Args:
        cfg: a config with this project's keys.
        key: the key that holds its name, e.g. ``MODEL.FPN.UPSAMPLER``.
        in_channels: channels of the map it is to upsample.
        channels_key: the key that sets ``in_channels``, for messages.

    Raises:
        InputError: unknown name or values that do not fit; the message names the keys.
    """
    name = cfg
    for part in key.split("."):
        name = name[part]
    try:
        cls = UPSAMPLER_REGISTRY.get(name)
        options = {
            option: cfg.MODEL[cls.config_node][option.upper()] for option in upsampler_options(cls)
        }
        return build_upsampler(name, in_channels, **options)
    except InputError as error:
        node = (
            f", MODEL.{cls.config_node}.*" if name in UPSAMPLER_REGISTRY and cls.config_node else ""
        )
        raise InputError(f"{key} {name!r} ({channels_key} {in_channels}{node}): {error}") from error
