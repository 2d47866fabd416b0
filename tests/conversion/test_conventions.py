"""mmdetection's numerical conventions, computed by hand, in the config of the published weights."""

import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import build_augmentation
from detectron2.structures import Boxes, Instances
from PIL import Image


def test_images_are_rgb_scaled_by_mmdetections_mean_and_padded_to_64(
    published_cfg, model, tmp_path
):
    path = tmp_path / "red.png"
    Image.new("RGB", (1333, 800), (255, 0, 51)).save(path)
    mapper = DatasetMapper(published_cfg, is_train=False)
    record = mapper({"file_name": str(path), "width": 1333, "height": 800})
    tensor = model.preprocess_image([record]).tensor
    assert tensor.shape == (1, 3, 832, 1344)
    expected = [(255 - 123.675) / 58.395, (0 - 116.28) / 57.12, (51 - 103.53) / 57.375]
    assert tensor[0, :, 799, 1332].tolist() == pytest.approx(expected, abs=1e-5)
    assert not tensor[0, :, 800:].any() and not tensor[0, :, :, 1333:].any()


@pytest.mark.parametrize(
    "size, expected",
    [
        ((480, 640), (800, 1067)),  # 640 * 800/480 = 1066.67
        ((640, 480), (1067, 800)),
        ((300, 640), (625, 1333)),  # the long side is bounded: 300 * 1333/640 = 624.8
        ((1000, 1500), (800, 1200)),
    ],
)
def test_test_images_are_resized_to_800_by_1333(published_cfg, size, expected):
    (resize,) = build_augmentation(published_cfg, is_train=False)
    image = np.zeros((*size, 3), np.uint8)
    assert resize.get_transform(image).apply_image(image).shape[:2] == expected


def test_stride_is_in_the_3x3_convolution(model):
    block = model.backbone.bottom_up.res3[0]
    assert block.conv1.stride == (1, 1) and block.conv2.stride == (2, 2)
    assert block.conv2.norm.eps == 1e-5


def test_anchors_start_at_the_corner_of_the_image_rounded_to_nothing(model):
    features = [torch.zeros(1, 1, 4, 4) for _ in range(5)]
    levels = model.proposal_generator.anchor_generator(features)
    # 8 strides wide where square; of half the height to twice the height; x before y.
    narrow, wide = 16 / math.sqrt(2), 16 * math.sqrt(2)
    by_hand = [
        [-wide, -narrow, wide, narrow],
        [-16, -16, 16, 16],
        [-narrow, -wide, narrow, wide],
        [4 - wide, -narrow, 4 + wide, narrow],  # one stride to the right
    ]
    torch.testing.assert_close(levels[0].tensor[:4], torch.tensor(by_hand))
    torch.testing.assert_close(levels[0].tensor[12 + 1], torch.tensor([-16.0, -12, 16, 20]))
    torch.testing.assert_close(levels[4].tensor[1], torch.tensor([-256.0, -256, 256, 256]))


def decode(model, part: str, deltas: list[float]) -> list[float]:
    """The box that deltas make of (0, 0, 10, 20)."""
    owner = model.proposal_generator if part == "rpn" else model.roi_heads.box_predictor
    boxes = owner.box2box_transform.apply_deltas(
        torch.tensor([deltas]), torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    )
    return boxes[0].tolist()


@pytest.mark.parametrize("part, deviations", [("rpn", [1, 1, 1, 1]), ("box", [0.1, 0.1, 0.2, 0.2])])
def test_deltas(model, part, deviations):
    # Centre (5, 10) moved by a tenth of width and height, width doubled, height halved.
    deltas = [0.1, -0.1, math.log(2), -math.log(2)]
    scaled = [delta / deviation for delta, deviation in zip(deltas, deviations, strict=True)]
    assert decode(model, part, scaled) == pytest.approx([-4, 3, 16, 13], abs=1e-5)
    # Nothing grows by more than 1000/16.
    scaled = [0, 0, 9 / deviations[2], 9 / deviations[3]]
    x1, y1, x2, y2 = decode(model, part, scaled)
    assert (x2 - x1, y2 - y1) == pytest.approx((625, 1250), rel=1e-5)
    # mmdetection bounds shrinking likewise, to 10 / 62.5 = 0.16, and Detectron2 does not.
    x1, _, x2, _ = decode(model, part, [0, 0, -5 / deviations[2], 0])
    assert x2 - x1 == pytest.approx(10 * math.exp(-5), rel=1e-2)


def pool(model, maps: list[torch.Tensor], box: list[float]) -> torch.Tensor:
    return model.roi_heads.box_pooler(maps, [Boxes(torch.tensor([box]))])[0, 0]


@pytest.mark.parametrize(
    "side, level", [(10, 0), (111.9, 0), (112, 1), (223.9, 1), (224, 2), (448, 3), (900, 3)]
)
def test_rois_are_pooled_from_the_level_of_their_size(model, side, level):
    maps = [torch.full((1, 1, 256 >> i, 256 >> i), float(i)) for i in range(4)]
    pooled = pool(model, maps, [0, 0, side, side])
    assert pooled.flatten().tolist() == pytest.approx([level] * 49)


def test_roi_align_is_aligned_and_samples_once_per_pixel(model):
    columns = torch.arange(16.0).expand(1, 1, 16, 16)
    maps = [columns, *(torch.zeros(1, 1, 16 >> i, 16 >> i) for i in (1, 2, 3))]
    # 28 pixels of stride 4: 7 bins of one cell, each sampled at its centre. The first is at 2.5,
    # where the centre of pixel 2 is.
    row = pool(model, maps, [8.0, 8.0, 36.0, 36.0])[0]
    assert row.tolist() == pytest.approx([2, 3, 4, 5, 6, 7, 8])
    # 56 pixels: bins of two cells, two samples in each. A parabola tells how many there were:
    # those of the first bin are at the centres of pixels 1 and 2, (1 + 4) / 2.
    maps[0] = columns**2
    row = pool(model, maps, [4.0, 4.0, 60.0, 60.0])[0]
    assert row[0].item() == pytest.approx(2.5)


def test_background_is_the_last_class_and_each_class_has_its_box(model):
    proposals = Instances((100, 100), proposal_boxes=Boxes(torch.tensor([[0.0, 0.0, 10.0, 20.0]])))
    deltas = torch.zeros(1, 4 * 80)
    deltas[0, 4 * 3] = 10  # of class 3: to the right by once the width
    for k, expected in ((80, []), (2, [[0, 0, 10, 20]]), (3, [[10, 0, 20, 20]])):
        logits = torch.zeros(1, 81)
        logits[0, k] = 20
        ((found,), _) = model.roi_heads.box_predictor.inference((logits, deltas), [proposals])
        assert found.pred_classes.tolist() == [k] * len(expected)
        assert found.pred_boxes.tensor.tolist() == expected


def test_counts_and_thresholds(published_cfg):
    rpn, heads = published_cfg.MODEL.RPN, published_cfg.MODEL.ROI_HEADS
    assert (rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST, rpn.NMS_THRESH) == (1000, 1000, 0.7)
    assert (heads.SCORE_THRESH_TEST, heads.NMS_THRESH_TEST) == (0.05, 0.5)
    assert published_cfg.TEST.DETECTIONS_PER_IMAGE == 100
