"""What plugs into Detectron2's registries. Importing it registers the builders."""

from .fpn import (
    UpsamplerFPN,
    build_resnet_lda_aqu_fpn_backbone,
    build_retinanet_resnet_lda_aqu_fpn_backbone,
)
from .mask_head import UpsamplerMaskRCNNConvHead
from .semantic_fpn import UpsamplerSemSegFPNHead
from .test_time_augmentation import AUGMENTED, augmented
from .upernet import UPerNetHead

__all__ = [
    "AUGMENTED",
    "UPerNetHead",
    "UpsamplerFPN",
    "UpsamplerMaskRCNNConvHead",
    "UpsamplerSemSegFPNHead",
    "augmented",
    "build_resnet_lda_aqu_fpn_backbone",
    "build_retinanet_resnet_lda_aqu_fpn_backbone",
]
