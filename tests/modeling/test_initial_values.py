"""What a model starts with: alike but for its upsamplers, no two of which start alike."""

from itertools import combinations

import lda_aqu.modeling  # noqa: F401  (registers the builders and heads)
import pytest
import torch
from detectron2.modeling import build_model
from lda_aqu.engine import load_config
from lda_aqu.upsamplers import Upsampler
from paths import ROOT
from torch import nn

MODELS = {
    "Small/panoptic_fpn_R_18_glyphs_lda_aqu.yaml": (
        *("MODEL.FPN.UPSAMPLER", "MODEL.SEM_SEG_HEAD.UPSAMPLER"),
        "MODEL.SEM_SEG_HEAD.LOGITS_UPSAMPLER",
    ),
    "Small/mask_rcnn_R_18_FPN_dsb2018_lda_aqu.yaml": (
        "MODEL.FPN.UPSAMPLER",
        "MODEL.ROI_MASK_HEAD.UPSAMPLER",
    ),
    "Small/upernet_R_18_camvid_lda_aqu.yaml": (
        *("MODEL.SEM_SEG_HEAD.UPSAMPLER", "MODEL.UPERNET.FUSION_UPSAMPLER"),
        "MODEL.SEM_SEG_HEAD.LOGITS_UPSAMPLER",
    ),
}


def build(file: str, keys: tuple[str, ...], upsampler: str, seed: int = 0) -> nn.Module:
    opts = [text for key in keys for text in (key, upsampler)]
    if "mask_rcnn" in file:
        opts += ["MODEL.ROI_MASK_HEAD.NAME", "UpsamplerMaskRCNNConvHead"]
    cfg = load_config(str(ROOT / "configs" / file), [*opts, "MODEL.DEVICE", "cpu"])
    torch.manual_seed(seed)
    return build_model(cfg)


@pytest.mark.parametrize("file, keys", MODELS.items())
def test_with_one_seed_all_but_the_upsamplers_starts_alike(file, keys):
    plain, learned = (build(file, keys, name) for name in ("Bilinear", "CARAFE"))
    values = learned.state_dict()
    assert all(torch.equal(value, values[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("file, keys", MODELS.items())
def test_upsamplers_start_unlike_one_another(file, keys):
    models = [build(file, keys, "CARAFE", seed) for seed in (0, 1)]
    weights = [
        module.channel_compressor.weight.flatten()[:8]
        for model in models
        for module in model.modules()
        if isinstance(module, Upsampler)
    ]
    assert len(weights) >= 8
    assert not any(torch.equal(a, b) for a, b in combinations(weights, 2))
