"""What plugs into Detectron2's registries. Importing it registers the builders."""

from .fpn import (
    UpsamplerFPN,
    build_resnet_lda_aqu_fpn_backbone,
    build_retinanet_resnet_lda_aqu_fpn_backbone,
)

__all__ = [
    "UpsamplerFPN",
    "build_resnet_lda_aqu_fpn_backbone",
    "build_retinanet_resnet_lda_aqu_fpn_backbone",
]
