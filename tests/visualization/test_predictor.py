import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from lda_aqu.engine import load_config
from lda_aqu.errors import InputError
from lda_aqu.visualization import build_predictor
from PIL import Image


@pytest.fixture
def cfg(tiny_config, tiny_weights) -> CfgNode:
    return load_config(str(tiny_config), ["MODEL.WEIGHTS", str(tiny_weights)])


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_it_predicts_what_detectron2s_predictor_does(cfg, tmp_path, image_format):
    cfg.INPUT.FORMAT = image_format
    file = str(tmp_path / "colourful.png")
    pixels = np.random.default_rng(0).integers(0, [255, 128, 32], (40, 60, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(file)
    expected = DefaultPredictor(cfg)(read_image(file, "BGR"))["instances"]
    image = {"file_name": file, "height": 40, "width": 60, "annotations": ["unused"]}
    predicted = build_predictor(cfg)(image)["instances"]
    assert len(expected) > 0
    assert torch.equal(predicted.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(predicted.pred_masks, expected.pred_masks)
    assert torch.equal(predicted.scores, expected.scores)


def test_weights_must_be_there_and_fit(cfg, tmp_path):
    for weights, message in (("", "MODEL.WEIGHTS is empty"), ("gone.pth", "gone.pth")):
        cfg.MODEL.WEIGHTS = weights
        with pytest.raises(InputError, match=message):
            build_predictor(cfg)
    other = cfg.clone()
    other.MODEL.ROI_HEADS.NUM_CLASSES = 5
    DetectionCheckpointer(build_model(other), str(tmp_path)).save("other")
    cfg.MODEL.WEIGHTS = str(tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth"):
        build_predictor(cfg)


def test_test_time_augmentation(tiny_config, tiny_weights, tiny_coco):
    """One size and no mirror image change nothing; more do."""
    image = {"file_name": str(tiny_coco / "images" / "0.png"), "height": 64, "width": 96}
    plain, same, more = (
        build_predictor(load_config(str(tiny_config), ["MODEL.WEIGHTS", str(tiny_weights), *opts]))(
            image
        )["instances"]
        for opts in (
            [],
            ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.FLIP", "False"],
            ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)"],
        )
    )
    assert len(plain) > 0 and (plain.pred_classes == same.pred_classes).all()
    torch.testing.assert_close(same.pred_boxes.tensor, plain.pred_boxes.tensor)
    assert torch.equal(same.pred_masks, plain.pred_masks)
    assert len(more) != len(plain) or not torch.equal(more.scores, plain.scores)
