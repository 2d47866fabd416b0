"""What plugs into Detectron2's registries. Importing it registers the builders."""

from .bottom_up import (
    TimmBackbone,
    build_mvit_backbone,
    build_regnet_backbone,
    build_swin_backbone,
    build_timm_backbone,
)
from .fpn import (
    UpsamplerFPN,
    build_resnet_lda_aqu_fpn_backbone,
    build_retinanet_resnet_lda_aqu_fpn_backbone,
)
from .lazy_config import upsampler_factory
from .mask_head import UpsamplerMaskRCNNConvHead
from .semantic_fpn import UpsamplerSemSegFPNHead
from .test_time_augmentation import AUGMENTED, augmented
from .upernet import UPerNetHead

__all__ = [
    "AUGMENTED",
    "TimmBackbone",
    "UPerNetHead",
    "UpsamplerFPN",
    "UpsamplerMaskRCNNConvHead",
    "UpsamplerSemSegFPNHead",
    "augmented",
    "build_mvit_backbone",
    "build_regnet_backbone",
    "build_resnet_lda_aqu_fpn_backbone",
    "build_retinanet_resnet_lda_aqu_fpn_backbone",
    "build_swin_backbone",
    "build_timm_backbone",
    "upsampler_factory",
]
