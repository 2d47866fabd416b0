"""The config keys that this project adds to Detectron2's."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from .errors import InputError
from .upsamplers import (
    UPSAMPLER_REGISTRY,
    GuidedUpsampler,
    Upsampler,
    build_upsampler,
    upsampler_options,
)

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def add_lda_aqu_config(cfg: CfgNode) -> None:
    """Add the project's keys, with their defaults, to a Detectron2 config.

    The options of the upsamplers are keys too: the option ``reduction`` of LDAAQU, whose
    ``config_node`` is LDA_AQU, is ``MODEL.LDA_AQU.REDUCTION``.

    Raises:
        InputError: an upsampler's ``config_node`` is one of other keys than its options.
    """
    node = type(cfg)  # so that importing this module does not import Detectron2

    # The upsampler of the top-down path: a name in UPSAMPLER_REGISTRY. Read by the backbone
    # builders build_resnet_lda_aqu_fpn_backbone and build_retinanet_resnet_lda_aqu_fpn_backbone.
    cfg.MODEL.FPN.UPSAMPLER = "LDAAQU"
    # Its bottom-up network: a builder in Detectron2's BACKBONE_REGISTRY, or one of those below.
    # MODEL.FPN.IN_FEATURES are the names of its maps.
    cfg.MODEL.FPN.BOTTOM_UP = "build_resnet_backbone"
    # Where the top-down path starts: "detectron2" (at P5; P6 and P7 are made from what is below)
    # or "published" (P6, and P7 in RetinaNet, are strided convolutions and are its top).
    cfg.MODEL.FPN.TOPOLOGY = "detectron2"

    # build_swin_backbone: Swin-T; maps p0 to p3. Keys are arguments of Detectron2's class.
    cfg.MODEL.SWIN = node()
    cfg.MODEL.SWIN.EMBED_DIM = 96
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    cfg.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    cfg.MODEL.SWIN.WINDOW_SIZE = 7
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.2
    # build_mvit_backbone: MViTv2-T; maps scale2 to scale5.
    cfg.MODEL.MVIT = node()
    cfg.MODEL.MVIT.EMBED_DIM = 96
    cfg.MODEL.MVIT.DEPTH = 10
    cfg.MODEL.MVIT.NUM_HEADS = 1
    cfg.MODEL.MVIT.LAST_BLOCK_INDEXES = [0, 2, 7, 9]
    cfg.MODEL.MVIT.DROP_PATH_RATE = 0.2
    # build_regnet_backbone: RegNetX-4GF; maps s1 to s4. Y models have an SE_RATIO of 0.25.
    cfg.MODEL.REGNET = node()
    cfg.MODEL.REGNET.STEM_WIDTH = 32
    cfg.MODEL.REGNET.DEPTH = 23
    cfg.MODEL.REGNET.W_A = 38.65
    cfg.MODEL.REGNET.W_0 = 96
    cfg.MODEL.REGNET.W_M = 2.43
    cfg.MODEL.REGNET.GROUP_WIDTH = 40
    cfg.MODEL.REGNET.SE_RATIO = 0.0
    # build_timm_backbone: a network of timm by its name, with timm's weights (where MODEL.WEIGHTS
    # is empty) or without; maps res2 to res5 as a rule.
    cfg.MODEL.TIMM = node()
    cfg.MODEL.TIMM.NAME = "resnet50"
    cfg.MODEL.TIMM.PRETRAINED = False

    # The upsampler of each 2x step in the semantic head: those of UpsamplerSemSegFPNHead's
    # branches, those of UPerNetHead's top-down path.
    cfg.MODEL.SEM_SEG_HEAD.UPSAMPLER = "LDAAQU"
    # The upsampler that brings either head's logits, NUM_CLASSES channels, to the input's size.
    cfg.MODEL.SEM_SEG_HEAD.LOGITS_UPSAMPLER = "Bilinear"

    # UPerNetHead. Its other options are those of MODEL.SEM_SEG_HEAD.
    cfg.MODEL.UPERNET = node()
    # The last input map is averaged over grids of these many cells a side.
    cfg.MODEL.UPERNET.POOL_SCALES = [1, 2, 3, 6]
    # The upsampler that brings each level of the pyramid to the finest one's size, 2x, 4x and 8x,
    # before they are fused.
    cfg.MODEL.UPERNET.FUSION_UPSAMPLER = "Bilinear"
    # Share of the channels dropped before either classifier.
    cfg.MODEL.UPERNET.DROPOUT = 0.1
    # The auxiliary classifier, used in training alone: its input map, the channels of its one
    # convolution, and the weight of its loss relative to SEM_SEG_HEAD.LOSS_WEIGHT.
    cfg.MODEL.UPERNET.AUX_IN_FEATURE = "res4"
    cfg.MODEL.UPERNET.AUX_CHANNELS = 256
    cfg.MODEL.UPERNET.AUX_WEIGHT = 0.4

    # The upsampler of UpsamplerMaskRCNNConvHead, from the pooled size to twice that.
    cfg.MODEL.ROI_MASK_HEAD.UPSAMPLER = "LDAAQU"

    # The values, [low, high], that become 0 and 255 where an image has more than 8 bits, in grey;
    # those between are mapped linearly, those beyond clipped. Without it such images are refused.
    cfg.INPUT.VALUE_RANGE = []
    # Random changes of brightness, contrast, saturation and hue while a SemanticSegmentor trains.
    cfg.INPUT.COLOR_AUG_SSD = False

    # Python files that register a user's upsamplers, which load_config and train_net.py run.
    cfg.MODEL.UPSAMPLER_FILES = []

    # Read MODEL.WEIGHTS also where the file may run code when it is read, as pickles can.
    cfg.MODEL.TRUST_WEIGHTS = False
    # In training, put another image in the place of one that cannot be read, and count them.
    cfg.DATALOADER.SKIP_UNREADABLE = False

    # Compile the backbone with torch.compile; the names of its parameters stay as they are.
    cfg.MODEL.BACKBONE.COMPILE = False

    # "SGD", Detectron2's, or "ADAMW", with which transformers and ConvNeXt are usually trained.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # The precision of SOLVER.AMP: "float16" (with scaled losses) or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Process the SOLVER.IMS_PER_BATCH images of a step in this many parts, one after the other,
    # for GPUs that cannot hold them at once.
    cfg.SOLVER.ACCUMULATION_STEPS = 1

    for name in UPSAMPLER_REGISTRY:
        cls = UPSAMPLER_REGISTRY.get(name)
        options = {option.upper(): value for option, value in upsampler_options(cls).items()}
        if not cls.config_node:
            continue
        if cls.config_node not in cfg.MODEL:
            cfg.MODEL[cls.config_node] = node(options)
        elif not options.keys() <= cfg.MODEL[cls.config_node].keys():
            raise InputError(
                f"upsampler {name!r}: MODEL.{cls.config_node} has other keys than its options; "
                "give it a config_node of its own"
            )

    # A user's own datasets, registered under the names of the entries, {name: {key: value}, ...}.
    # Instances have ANNOTATIONS, a JSON file in COCO's format, and IMAGES, a folder. Panoptic ones
    # have, as well, PANOPTIC_ANNOTATIONS, a JSON file in COCO's panoptic format, PANOPTIC_LABELS,
    # the folder of its PNGs, and SEMANTIC_LABELS, a folder of PNGs in which 0 is any thing, 1 and
    # up are stuff in the order of the ids, and 255 is ignored. Semantic ones have IMAGES,
    # SEMANTIC_LABELS, with an index of CLASSES, a list of names, or IGNORE_VALUE (255) each.
    # Relative paths are relative to $DETECTRON2_DATASETS ("datasets" where it is not set).
    cfg.DATASETS.COCO_FORMAT = node(new_allowed=True)


def build_upsampler_from_config(
    cfg: CfgNode,
    key: str,
    in_channels: int,
    channels_key: str,
    scale_factor: float = 2,
    has_guide: bool = False,
) -> Upsampler:
    """Build the upsampler that a config key names.

    Args:
        cfg: a config with this project's keys.
        key: the key that holds its name, e.g. ``MODEL.FPN.UPSAMPLER``.
        in_channels: channels of the map it is to upsample.
        channels_key: the key that sets ``in_channels``, for messages.
        scale_factor: output size over input size.
        has_guide: whether a map of the output's size is at hand where it is called, so that a
            :class:`GuidedUpsampler` can be.

    Raises:
        InputError: unknown name, a guided upsampler without a guide, one whose keys the config
            lacks, or values that do not fit; the message names the keys.
    """
    name = attrgetter(key)(cfg)
    try:
        cls = UPSAMPLER_REGISTRY.get(name)
        if issubclass(cls, GuidedUpsampler) and not has_guide:
            raise InputError(
                "needs a high-resolution guide, and there is none here; "
                f"allowed are {', '.join(UPSAMPLER_REGISTRY.unguided())}"
            )
        options = {}
        if cls.config_node:
            if cls.config_node not in cfg.MODEL:
                raise InputError(
                    "was registered after add_lda_aqu_config, which adds its keys to the config: "
                    "register it before"
                )
            keys = cfg.MODEL[cls.config_node]
            options = {option: keys[option.upper()] for option in upsampler_options(cls)}
        return build_upsampler(name, in_channels, scale_factor, **options)
    except InputError as error:
        node = (
            f", MODEL.{cls.config_node}.*" if name in UPSAMPLER_REGISTRY and cls.config_node else ""
        )
        raise InputError(f"{key} {name!r} ({channels_key} {in_channels}{node}): {error}") from error
