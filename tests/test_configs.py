"""Shipped configs build and run, or differ from those in the upsampler, as their names say."""

import lda_aqu.modeling  # noqa: F401  (registers the builders)
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from lda_aqu.engine import Trainer, load_config
from lda_aqu.engine.config_merge import config_items
from lda_aqu.upsamplers import Upsampler
from paths import ROOT

CONFIGS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "configs").rglob("*.yaml")
    if not path.name.startswith("Base")
)
BASELINES = [c for c in CONFIGS if c.endswith(("_nearest.yaml", "_bilinear.yaml"))]


def load(name: str) -> CfgNode:
    return load_config(str(ROOT / name), ["MODEL.WEIGHTS", ""])


def differences(a: CfgNode, b: CfgNode) -> set[str]:
    a, b = dict(config_items(a)), dict(config_items(b))
    return {key for key in a | b if a.get(key) != b.get(key)}


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in BASELINES])
def test_builds_and_runs(name):
    cfg = load(name)
    # Untrained models find as many objects as they may, which takes its time.
    cfg.merge_from_list(["MODEL.RPN.POST_NMS_TOPK_TEST", 20, "TEST.DETECTIONS_PER_IMAGE", 5])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    assert any(isinstance(m, Upsampler) for m in model.modules())
    with torch.no_grad():
        (output,) = model([{"image": torch.full((3, 64, 96), 100.0), "height": 64, "width": 96}])
    kinds = {
        "GeneralizedRCNN": {"instances"},
        "RetinaNet": {"instances"},
        "SemanticSegmentor": {"sem_seg"},
        "PanopticFPN": {"instances", "sem_seg", "panoptic_seg"},
    }
    assert output.keys() == kinds[cfg.MODEL.META_ARCHITECTURE]
    if "instances" in output:
        assert output["instances"].image_size == (64, 96)
    if "sem_seg" in output:
        assert output["sem_seg"].shape == (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 64, 96)
    if "panoptic_seg" in output:
        assert output["panoptic_seg"][0].shape == (64, 96)


@pytest.mark.parametrize("name", BASELINES)
def test_twins_differ_in_the_upsamplers_alone(name):
    stem, upsampler = name.removesuffix(".yaml").rsplit("_", 1)
    baseline, twin = load(name), load(f"{stem}_lda_aqu.yaml")
    expected = {}
    if "fpn" in baseline.MODEL.BACKBONE.NAME:
        expected["MODEL.FPN.UPSAMPLER"] = "Nearest"
    if baseline.MODEL.META_ARCHITECTURE in ("SemanticSegmentor", "PanopticFPN"):
        expected["MODEL.SEM_SEG_HEAD.UPSAMPLER"] = "Bilinear"
    assert upsampler.capitalize() in expected.values()
    assert differences(baseline, twin) == expected.keys()
    baseline, twin = dict(config_items(baseline)), dict(config_items(twin))
    assert {key: baseline[key] for key in expected} == expected
    assert {twin[key] for key in expected} == {"LDAAQU"}


def test_every_config_has_a_baseline():
    stems = {name.removesuffix("_lda_aqu.yaml") for name in CONFIGS if "_lda_aqu.yaml" in name}
    assert stems == {name.removesuffix(".yaml").rsplit("_", 1)[0] for name in BASELINES}


@pytest.mark.parametrize(
    "name",
    [
        "COCO-Detection/faster_rcnn_R_50_FPN_1x",
        "COCO-Detection/retinanet_R_50_FPN_1x",
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
        "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x",
    ],
)
def test_coco_twins_are_detectron2s_own_recipes(name):
    ours, theirs = load(f"configs/{name}_nearest.yaml"), model_zoo.get_config(f"{name}.yaml")
    changed = differences(ours, theirs) & dict(config_items(theirs)).keys()
    expected = {"MODEL.BACKBONE.NAME", "MODEL.DEVICE", "MODEL.WEIGHTS"}
    if "panoptic" in name:
        expected.add("MODEL.SEM_SEG_HEAD.NAME")
    assert changed == expected
    assert (
        theirs.MODEL.WEIGHTS
        == load_config(str(ROOT / f"configs/{name}_nearest.yaml"), []).MODEL.WEIGHTS
    )


def test_ade20k_recipe_decays_polynomially():
    cfg = load("configs/ADE20K-SemanticSegmentation/upernet_R_50_160k_lda_aqu.yaml")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=cfg.SOLVER.BASE_LR)
    schedule = Trainer.build_lr_scheduler(cfg, optimizer)
    rates = []
    for iteration in (0, 40000, 159999):
        schedule.last_epoch = iteration
        rates += schedule.get_lr()
    assert rates == pytest.approx([0.01, 0.01 * 0.75**0.9, 0.0001])


def test_variants():
    small = load("configs/COCO-Detection/faster_rcnn_R_50_FPN_1x_lda_aqu_r16.yaml")
    published = load("configs/COCO-Detection/faster_rcnn_R_50_FPN_1x_lda_aqu_published.yaml")
    default = load("configs/COCO-Detection/faster_rcnn_R_50_FPN_1x_lda_aqu.yaml")
    assert differences(small, default) == {"MODEL.LDA_AQU.REDUCTION"}
    assert differences(published, default) == {"MODEL.FPN.TOPOLOGY"}
    weights = load("configs/COCO-Detection/faster_rcnn_R_50_FPN_1x_lda_aqu_published_weights.yaml")
    assert differences(weights, published) == {
        "INPUT.FORMAT",
        "INPUT.MIN_SIZE_TRAIN",
        "MODEL.PIXEL_MEAN",
        "MODEL.PIXEL_STD",
        "MODEL.RESNETS.STRIDE_IN_1X1",
    }
