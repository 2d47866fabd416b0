"""The shipped LazyConfig, and what it is of Detectron2's."""

import pytest
import torch
from detectron2.config import LazyCall, LazyConfig, instantiate
from detectron2.model_zoo import get_config
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from lda_aqu import LDAAQU
from lda_aqu.modeling import UpsamplerFPN, upsampler_factory
from paths import ROOT

FILE = str(ROOT / "configs" / "LazyConfig" / "panoptic_fpn_R_50_1x_lda_aqu.py")


def image(size: int = 64) -> dict:
    """An image with one object, as a mapper gives it."""
    instances = Instances((size, size))
    instances.gt_boxes = Boxes([[8.0, 8.0, 40.0, 40.0]])
    instances.gt_classes = torch.tensor([3])
    instances.gt_masks = BitMasks(torch.ones(1, size, size, dtype=torch.bool))
    pixels = torch.full((3, size, size), 100.0)
    return {
        **{"image": pixels, "height": size, "width": size, "instances": instances},
        "sem_seg": torch.zeros(size, size, dtype=torch.long),
    }


@pytest.mark.cpu
def test_trains_and_keeps_detectron2s_names(tmp_path):
    cfg = LazyConfig.load(FILE)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    assert (tmp_path / "config.yaml").stat().st_size > 0
    cfg = LazyConfig.apply_overrides(cfg, ["model.backbone.make_upsampler.reduction=16"])
    model = instantiate(cfg.model)
    theirs = instantiate(get_config("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.py").model)
    added = {name: module for name, module in model.named_modules() if isinstance(module, LDAAQU)}
    assert sorted(name for name in added if name.startswith("backbone")) == [
        f"backbone.fpn_upsample{level}" for level in (2, 3, 4)
    ]
    widths = {name.split(".")[0]: m.proj_q.out_channels for name, m in added.items()}
    assert widths == {"backbone": 256 // 16, "sem_seg_head": 128 // 4}
    own = {name for name in model.state_dict() if not name.startswith(tuple(added))}
    assert own == theirs.state_dict().keys()
    with EventStorage():
        sum(model([image()]).values()).backward()
    assert all(
        parameter.grad is not None for module in added.values() for parameter in module.parameters()
    )


@pytest.mark.cpu
def test_the_pyramid_takes_what_configs_give_detectron2s():
    """As those of ViTDet, whose images are padded to squares."""
    model = get_config("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.py").model
    backbone = model.backbone
    backbone._target_ = UpsamplerFPN
    backbone.square_pad = 1024
    backbone.make_upsampler = LazyCall(upsampler_factory)(name="Nearest", in_channels=256)
    with torch.device("meta"):
        assert instantiate(backbone).padding_constraints == {"square_size": 1024}
