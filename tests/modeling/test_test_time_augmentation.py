import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from lda_aqu.engine import load_config
from lda_aqu.modeling import augmented
from paths import ROOT

pytestmark = pytest.mark.cpu

HEIGHT, WIDTH = 50, 72  # no multiples of the model's stride, nor of what the image is resized to


@pytest.fixture(scope="module")
def cfg() -> CfgNode:
    return load_config(
        str(ROOT / "configs" / "Small" / "semantic_fpn_R_18_camvid_lda_aqu.yaml"),
        [
            *("MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", "16"),
            *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "TEST.AUG.MIN_SIZES", "(64,)"),
        ],
    )


@pytest.fixture(scope="module")
def model(cfg):
    torch.manual_seed(0)
    return build_model(cfg).eval()


def image() -> dict:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 64, 92), dtype=torch.uint8, generator=generator)
    return {"image": pixels, "height": HEIGHT, "width": WIDTH, "file_name": "a.jpg"}


@torch.no_grad()
def predict(cfg: CfgNode, model, images: list[dict], *opts: object) -> list[torch.Tensor]:
    cfg = cfg.clone()
    cfg.merge_from_list(["TEST.AUG.ENABLED", True, *opts])
    return [output["sem_seg"] for output in augmented(cfg, model)(images)]


@torch.no_grad()
def test_one_size_without_mirroring_is_the_model_itself(cfg, model):
    (result,) = predict(cfg, model, [image()], "TEST.AUG.FLIP", False)
    expected = model([image()])[0]["sem_seg"].softmax(0)
    assert result.shape == (11, HEIGHT, WIDTH)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_a_mirrored_image_has_mirrored_predictions(cfg, model):
    mirrored = image()
    mirrored["image"] = mirrored["image"].flip(-1)
    a, b = predict(cfg, model, [image(), mirrored])
    torch.testing.assert_close(a, b.flip(-1))
    (alone,) = predict(cfg, model, [image()], "TEST.AUG.FLIP", False)
    assert (a - alone).abs().max() > 0.001


def test_sizes_are_averaged(cfg, model):
    both, small, large = (
        predict(cfg, model, [image()], "TEST.AUG.FLIP", False, "TEST.AUG.MIN_SIZES", sizes)[0]
        for sizes in ((64, 96), (64,), (96,))
    )
    assert (small - large).abs().max() > 0.001
    torch.testing.assert_close(both, (small + large) / 2)
