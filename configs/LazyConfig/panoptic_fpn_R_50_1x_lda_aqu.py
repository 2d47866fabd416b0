"""Detectron2's Panoptic FPN with LDA-AQU in its pyramid and its semantic head, as a LazyConfig.

Detectron2's tools/lazyconfig_train_net.py trains and evaluates it.
"""

from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config
from lda_aqu import build_upsampler
from lda_aqu.modeling import UpsamplerFPN, UpsamplerSemSegFPNHead, upsampler_factory

base = get_config("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.py")
dataloader, lr_multiplier, model = base.dataloader, base.lr_multiplier, base.model
optimizer, train = base.optimizer, base.train

model.backbone._target_ = UpsamplerFPN
model.backbone.make_upsampler = L(upsampler_factory)(name="LDAAQU", in_channels="${..out_channels}")
model.sem_seg_head._target_ = UpsamplerSemSegFPNHead
model.sem_seg_head.make_upsampler = L(upsampler_factory)(
    name="LDAAQU", in_channels="${..conv_dims}"
)
model.sem_seg_head.logits_upsampler = L(build_upsampler)(
    name="Bilinear", in_channels="${..num_classes}", scale_factor="${..common_stride}"
)
