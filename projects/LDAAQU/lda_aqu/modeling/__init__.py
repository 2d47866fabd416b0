"""What plugs into Detectron2's registries. Importing it registers the builders."""

from .fpn import (
    UpsamplerFPN,
    build_resnet_lda_aqu_fpn_backbone,
    build_retinanet_resnet_lda_aqu_fpn_backbone,
)
from .mask_head import UpsamplerMaskRCNNConvHead
from .semantic_fpn import UpsamplerSemSegFPNHead
from .upernet import UPerNetHead

__all__ = [
    "UPerNetHead",
    "UpsamplerFPN",
    "UpsamplerMaskRCNNConvHead",
    "UpsamplerSemSegFPNHead",
    "build_resnet_lda_aqu_fpn_backbone",
    "build_retinanet_resnet_lda_aqu_fpn_backbone",
]
