"""Every shipped config builds, runs and is what its name says."""

import lda_aqu.modeling  # noqa: F401  (registers the builders)
import pytest
import torch
from conftest import ROOT
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from lda_aqu.engine import load_config
from lda_aqu.upsamplers import Upsampler

CONFIGS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "configs").rglob("*.yaml")
    if not path.name.startswith("Base")
)
TWINS = [c for c in CONFIGS if c.endswith("_nearest.yaml")]


def load(name: str) -> CfgNode:
    return load_config(str(ROOT / name), ["MODEL.WEIGHTS", ""])


def differences(a: CfgNode, b: CfgNode, prefix: str = "") -> set[str]:
    result = set()
    for key in a.keys() | b.keys():
        if isinstance(a.get(key), CfgNode) and isinstance(b.get(key), CfgNode):
            result |= differences(a[key], b[key], f"{prefix}{key}.")
        elif a.get(key) != b.get(key):
            result.add(prefix + key)
    return result


@pytest.mark.parametrize("name", CONFIGS)
def test_builds_and_runs(name):
    cfg = load(name)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    assert any(isinstance(m, Upsampler) for m in model.modules())
    with torch.no_grad():
        (output,) = model([{"image": torch.full((3, 64, 96), 100.0), "height": 64, "width": 96}])
    assert output["instances"].image_size == (64, 96)


@pytest.mark.parametrize("name", TWINS)
def test_twins_differ_in_the_upsampler_alone(name):
    twin = name.replace("_nearest.yaml", "_lda_aqu.yaml")
    assert differences(load(name), load(twin)) == {"MODEL.FPN.UPSAMPLER"}
    assert load(twin).MODEL.FPN.UPSAMPLER == "LDAAQU"


@pytest.mark.parametrize(
    "name",
    [
        "COCO-Detection/faster_rcnn_R_50_FPN_1x",
        "COCO-Detection/retinanet_R_50_FPN_1x",
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
    ],
)
def test_coco_twins_are_detectron2s_own_recipes(name):
    ours, theirs = load(f"configs/{name}_nearest.yaml"), model_zoo.get_config(f"{name}.yaml")
    changed = differences(ours, theirs)
    added = {key for key in changed if key.startswith(("MODEL.LDA_AQU", "DATASETS.COCO_FORMAT"))}
    added |= {"MODEL.FPN.UPSAMPLER", "MODEL.FPN.TOPOLOGY"}
    assert changed - added == {"MODEL.BACKBONE.NAME", "MODEL.DEVICE", "MODEL.WEIGHTS"}
    assert (
        theirs.MODEL.WEIGHTS
        == load_config(str(ROOT / f"configs/{name}_nearest.yaml"), []).MODEL.WEIGHTS
    )


def test_variants():
    small = load("configs/COCO-Detection/faster_rcnn_R_50_FPN_1x_lda_aqu_r16.yaml")
    published = load("configs/COCO-Detection/faster_rcnn_R_50_FPN_1x_lda_aqu_published.yaml")
    default = load("configs/COCO-Detection/faster_rcnn_R_50_FPN_1x_lda_aqu.yaml")
    assert differences(small, default) == {"MODEL.LDA_AQU.REDUCTION"}
    assert differences(published, default) == {"MODEL.FPN.TOPOLOGY"}
