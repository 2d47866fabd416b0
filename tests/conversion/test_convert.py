import pytest
import torch
import torchvision
from lda_aqu import LDAAQU
from lda_aqu.conversion import Row, convert_weights, weight_shapes
from lda_aqu.engine import load_config
from lda_aqu.errors import InputError
from mmdetection_oracle import PublishedFasterRCNN
from paths import ROOT
from published_checkpoint import published_shapes, random_weights

COUNTER = "num_batches_tracked"


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_checkpoint_of_these_tests_is_of_the_published_architecture():
    shapes = published_shapes()
    resnet = torchvision.models.resnet50(weights=None).state_dict()
    expected = {f"backbone.{k}": tuple(v.shape) for k, v in resnet.items() if "fc." not in k}
    assert {k: v for k, v in shapes.items() if k.startswith("backbone.")} == expected
    upsamplers = [
        shape
        for name, shape in shapes.items()
        if "upsample_modules" in name and "base_offset" not in name
    ]
    assert sum(torch.Size(shape).numel() for shape in upsamplers) == 4 * 39410


def test_every_tensor_is_accounted_for(published, shapes, model):
    converted, rows = convert_weights(published, shapes)
    assert sorted(row.source for row in rows) == sorted(published)
    assert {row.target for row in rows} - {""} == model.state_dict().keys()
    for row in rows:
        if row.target:
            assert torch.equal(converted[row.target], published[row.source]), row
    left_out = {row.source for row in rows if not row.target}
    assert all(row.note for row in rows if not row.target)
    assert left_out == {n for n in published if n.endswith((COUNTER, "base_offset"))}
    assert model.load_state_dict(converted, strict=True)


def test_round_trip_is_exact(published, shapes):
    ours, _ = convert_weights(published, shapes)
    theirs, rows = convert_weights(ours, shapes, "mmdetection")
    weights = {n: v for n, v in published.items() if not n.endswith((COUNTER, "base_offset"))}
    assert equal({n: v for n, v in theirs.items() if not n.endswith(COUNTER)}, weights)
    assert Row("", "backbone.bn1.num_batches_tracked", "added: 0") in rows
    # mmdetection finds all that its modules register: mmcv alone saves the constants, too.
    assert theirs.keys() == {n for n in published if not n.endswith("base_offset")}
    again, _ = convert_weights(theirs, shapes)
    assert equal(again, ours)


def test_converted_model_computes_what_mmdetection_does(published, shapes, model):
    model.load_state_dict(convert_weights(published, shapes)[0])
    reference = PublishedFasterRCNN(published)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 60, 100), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        boxes, scores, labels = reference.detect(image)
        (output,) = model([{"image": image, "height": 60, "width": 100}])
    found = output["instances"]
    assert len(labels) == 100 and len(set(labels.tolist())) > 5 and scores.max() > 0.2
    assert found.pred_classes.tolist() == labels.tolist()
    torch.testing.assert_close(found.scores.double(), scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.pred_boxes.tensor.double(), boxes, rtol=0, atol=2e-3)


def test_upsamplers_only(published, shapes):
    converted, rows = convert_weights(published, shapes, upsamplers_only=True)
    assert converted.keys() == {n for n in shapes if n.startswith("backbone.fpn_upsample")}
    assert sorted(row.source for row in rows) == sorted(published)
    assert Row("rpn_head.rpn_cls.bias", "", "not of an upsampler of the model") in rows
    upsampler = LDAAQU(256)
    prefix = "backbone.fpn_upsample5."
    of_level = {n.removeprefix(prefix): v for n, v in converted.items() if n.startswith(prefix)}
    upsampler.load_state_dict(of_level)
    assert torch.equal(upsampler.proj_q.weight, published["neck.upsample_modules.3.proj_q.weight"])
    back, _ = convert_weights(converted, shapes, "mmdetection", upsamplers_only=True)
    expected = {
        n: v for n, v in published.items() if "upsample_modules" in n and "base_offset" not in n
    }
    assert equal(back, expected)


def test_mask_rcnn_and_other_sizes():
    """Of another depth, width and number of classes, with a mask head; BatchNorm not frozen."""
    cfg = load_config(
        str(ROOT / "configs/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_lda_aqu.yaml"),
        [
            *("MODEL.DEVICE", "cpu", "MODEL.FPN.TOPOLOGY", "published"),
            *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
            *("MODEL.RESNETS.NORM", "BN", "MODEL.FPN.OUT_CHANNELS", "16"),
            *("MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8"),
            *("MODEL.ROI_HEADS.NUM_CLASSES", "3"),
        ],
    )
    sizes = {"blocks": (2, 2, 2, 2), "bottleneck": False, "res2": 64}
    sizes |= {"channels": 16, "fc_dim": 32}
    published = random_weights(published_shapes(**sizes, num_classes=3, mask_channels=8))
    shapes = weight_shapes(cfg)
    ours, _ = convert_weights(published, shapes)
    theirs, _ = convert_weights(ours, shapes, "mmdetection")
    assert equal(theirs, {n: v for n, v in published.items() if not n.endswith("base_offset")})
    assert torch.equal(
        ours["roi_heads.mask_head.mask_fcn4.bias"],
        published["roi_head.mask_head.convs.3.conv.bias"],
    )


@pytest.mark.parametrize("to", ["detectron2", "mmdetection"])
@pytest.mark.parametrize(
    "change, message",
    [
        ("missing", "1 tensors are missing, the first is {name}"),
        (
            "misshapen",
            r"1 have another shape, the first is {name}, \(81, 7\) instead of \(81, 1024\)",
        ),
        ("unknown", "1 have no place in it, the first is {name}2"),
    ],
)
def test_what_does_not_fit_is_named(published, shapes, to, change, message):
    weights, name = dict(published), "roi_head.bbox_head.fc_cls.weight"
    if to == "mmdetection":
        weights, name = (
            convert_weights(published, shapes)[0],
            "roi_heads.box_predictor.cls_score.weight",
        )
    if change == "missing":
        del weights[name]
    else:
        weights[name + ("2" if change == "unknown" else "")] = torch.zeros(81, 7)
    with pytest.raises(InputError, match=message.format(name=name)):
        convert_weights(weights, shapes, to)


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.FPN.TOPOLOGY", "detectron2"], "no place in it, the first is neck.lateral_convs.4"),
        (["MODEL.LDA_AQU.REDUCTION", "16"], "have another shape.*upsample_modules.0"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "20"], "4 have another shape.*fc_cls.weight"),
        (["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"], "2 have another shape.*fc_reg"),
        (["MODEL.FPN.NORM", "GN"], "has 'backbone.fpn_lateral2.norm.weight', of which"),
    ],
)
def test_another_model_is_refused(published_cfg, published, opts, message):
    cfg = published_cfg.clone()
    cfg.merge_from_list(opts)
    with pytest.raises(InputError, match=message):
        convert_weights(published, weight_shapes(cfg))


def test_upsamplers_without_weights_are_refused(published_cfg, published):
    cfg = published_cfg.clone()
    cfg.MODEL.FPN.UPSAMPLER = "Nearest"
    with pytest.raises(InputError, match="upsamplers of the config's model have no weights"):
        convert_weights(published, weight_shapes(cfg), upsamplers_only=True)
