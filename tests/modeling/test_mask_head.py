import lda_aqu.modeling  # noqa: F401  (registers the head)
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_mask_head
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from gradients import unreached_parameters
from lda_aqu import LDAAQU, add_lda_aqu_config
from lda_aqu.errors import InputError
from random_tensors import normals
from torch import nn
from torch.nn import functional as F

OURS, THEIRS = "UpsamplerMaskRCNNConvHead", "MaskRCNNConvUpsampleHead"
CHANNELS = 16


def build(name: str, *opts: object) -> nn.Module:
    cfg = get_cfg()
    add_lda_aqu_config(cfg)
    values = {"NAME": name, "NUM_CONV": 2, "CONV_DIM": CHANNELS}
    flat = [part for key, value in values.items() for part in (f"MODEL.ROI_MASK_HEAD.{key}", value)]
    cfg.merge_from_list([*flat, "MODEL.ROI_HEADS.NUM_CLASSES", 3, *opts])
    torch.manual_seed(0)
    return build_mask_head(cfg, ShapeSpec(channels=CHANNELS, width=7, height=7))


def regions(count: int) -> torch.Tensor:
    return normals(1)(count, CHANNELS, 7, 7)


def ground_truth(count: int) -> Instances:
    instances = Instances((32, 32))
    instances.proposal_boxes = Boxes(torch.tensor([[4.0, 4.0, 28.0, 28.0]]).repeat(count, 1))
    instances.gt_classes = torch.arange(count) % 3
    masks = torch.zeros(count, 32, 32, dtype=torch.bool)
    masks[:, 8:20, 8:24] = True
    instances.gt_masks = BitMasks(masks)
    return instances


def test_all_but_the_deconvolution_is_detectron2s_head():
    theirs, ours = build(THEIRS), build(OURS)
    assert [n for n, _ in ours.named_children()] == [n for n, _ in theirs.named_children()]
    assert isinstance(ours.deconv, LDAAQU)
    incompatible = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert set(incompatible.unexpected_keys) == {"deconv.weight", "deconv.bias"}
    assert set(incompatible.missing_keys) == {f"deconv.{n}" for n in ours.deconv.state_dict()}


@pytest.mark.parametrize("mode", ["Nearest", "Bilinear"])
def test_interpolation_in_place_of_the_deconvolution(mode):
    theirs = build(THEIRS)
    ours = build(OURS, "MODEL.ROI_MASK_HEAD.UPSAMPLER", mode)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    x = theirs.mask_fcn2(theirs.mask_fcn1(regions(5)))
    x = F.interpolate(x, size=(14, 14), mode=mode.lower())
    assert torch.equal(ours.layers(regions(5)), theirs.predictor(x.relu()))


def test_training_reaches_every_parameter():
    head, instances = build(OURS), [ground_truth(4)]
    with EventStorage():
        assert not unreached_parameters(head, lambda: head(regions(4), instances)["loss_mask"])


@pytest.mark.parametrize("count", [0, 3])
def test_inference(count):
    head = build(OURS).eval()
    instances = Instances((32, 32))
    instances.pred_classes = torch.arange(count) % 3
    (output,) = head(regions(count), [instances])
    assert output.pred_masks.shape == (count, 1, 14, 14)


def test_no_convolution_before_the_upsampler():
    head = build(
        OURS, "MODEL.ROI_MASK_HEAD.NUM_CONV", 0, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True
    )
    assert head.layers(regions(2)).shape == (2, 1, 14, 14)


@pytest.mark.parametrize(
    "opts, message",
    [
        (["UPSAMPLER", "Carafe"], "MODEL.ROI_MASK_HEAD.UPSAMPLER 'Carafe'.*known: .*Bilinear"),
        (["CONV_DIM", 18], r"MODEL.ROI_MASK_HEAD.CONV_DIM 18.*reduction \(4\)"),
        (["NUM_CONV", 0, "CONV_DIM", 32], "MODEL.ROI_MASK_HEAD.CONV_DIM 32 .*the input, 16"),
    ],
)
def test_bad_values_name_the_key(opts, message):
    keys = [f"MODEL.ROI_MASK_HEAD.{o}" if i % 2 == 0 else o for i, o in enumerate(opts)]
    with pytest.raises(InputError, match=message):
        build(OURS, *keys)
