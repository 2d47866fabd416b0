import lda_aqu.modeling  # noqa: F401  (registers the heads)
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_sem_seg_head
from gradients import unreached_parameters
from lda_aqu import LDAAQU, add_lda_aqu_config
from lda_aqu.engine import Checkpointer
from lda_aqu.errors import InputError
from random_tensors import normals
from torch import nn

OURS, THEIRS = "UpsamplerSemSegFPNHead", "SemSegFPNHead"
SHAPES = {f"p{n}": ShapeSpec(channels=8, stride=2**n) for n in range(2, 7)}


def config(name: str, *opts: object) -> CfgNode:
    cfg = get_cfg()
    add_lda_aqu_config(cfg)
    cfg.merge_from_list(["MODEL.SEM_SEG_HEAD.NAME", name, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 7])
    cfg.merge_from_list(["MODEL.SEM_SEG_HEAD.CONVS_DIM", 32])
    cfg.merge_from_list(["MODEL.DEVICE", str(torch.get_default_device()), *opts])
    return cfg


def build(name: str, *opts: object, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_sem_seg_head(config(name, *opts), SHAPES)


def inputs(height: int = 64, width: int = 128) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    normal = normals(1)
    features = {
        name: normal(2, s.channels, height // s.stride, width // s.stride)
        for name, s in SHAPES.items()
    }
    targets = (3.5 + normal(2, height, width)).clamp(0, 6).long()
    targets[:, :5] = 255
    return features, targets


@pytest.mark.parametrize("norm", ["", "GN", "BN"])
@pytest.mark.parametrize("common_stride", [4, 8])
def test_bilinear_is_detectron2s_head_bit_for_bit(norm, common_stride, exact):
    opts = ["MODEL.SEM_SEG_HEAD.NORM", norm, "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", common_stride]
    opts += ["MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 0.3]
    if common_stride == 8:
        opts += ["MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p3", "p4", "p5", "p6"]]
    theirs, ours = (
        build(THEIRS, *opts),
        build(OURS, *opts, "MODEL.SEM_SEG_HEAD.UPSAMPLER", "Bilinear"),
    )
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(
        torch.equal(a, b)
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    )
    features, targets = inputs()
    losses = [head(features, targets)[1] for head in (theirs, ours)]
    assert losses[0].keys() == losses[1].keys() == {"loss_sem_seg"}
    torch.testing.assert_close(losses[0], losses[1], **exact)
    for loss in losses:
        loss["loss_sem_seg"].backward()
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, **exact)
    expected, actual = (head.eval()(features)[0] for head in (theirs, ours))
    assert torch.equal(actual, expected) and actual.shape == (2, 7, 64, 128)


def test_upsamplers_take_the_places_of_the_bilinear_steps():
    baseline, head = build(THEIRS), build(OURS)
    upsamplers = {name for name, m in head.named_modules() if isinstance(m, LDAAQU)}
    assert upsamplers == {"p3.1", "p4.1", "p4.3", "p5.1", "p5.3", "p5.5"}
    state = head.state_dict()
    for name, value in baseline.state_dict().items():
        assert torch.equal(state[name], value), name

    features, targets = inputs()
    assert not unreached_parameters(head, lambda: head(features, targets)[1]["loss_sem_seg"])
    assert head.eval()(features)[0].shape == (2, 7, 64, 128)


def test_logits_upsampler():
    opts = ["MODEL.SEM_SEG_HEAD.UPSAMPLER", "Bilinear", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 16]
    head = build(OURS, *opts, "MODEL.SEM_SEG_HEAD.LOGITS_UPSAMPLER", "LDAAQU")
    assert {n for n, m in head.named_modules() if isinstance(m, LDAAQU)} == {"logits_upsampler"}
    features, targets = inputs()
    assert not unreached_parameters(head, lambda: head(features, targets)[1]["loss_sem_seg"])
    logits = head.eval()(features)[0]
    assert torch.equal(logits, head.logits_upsampler(head.layers(features)))
    assert logits.shape == (2, 16, 64, 128)


@pytest.mark.parametrize(
    "opts, message",
    [
        (["UPSAMPLER", "Carafe"], "MODEL.SEM_SEG_HEAD.UPSAMPLER 'Carafe'.*known: .*Bilinear"),
        (["CONVS_DIM", 30, "NORM", ""], r"MODEL.SEM_SEG_HEAD.CONVS_DIM 30.*reduction \(4\)"),
        (
            ["LOGITS_UPSAMPLER", "LDAAQU"],
            r"SEM_SEG_HEAD.LOGITS_UPSAMPLER 'LDAAQU' \(MODEL.SEM_SEG_HEAD.NUM_CLASSES 7, "
            r"MODEL.LDA_AQU.\*\): in_channels \(7\) is not a multiple of reduction \(4\)",
        ),
    ],
)
def test_bad_values_name_the_key(opts, message):
    keys = [f"MODEL.SEM_SEG_HEAD.{o}" if i % 2 == 0 else o for i, o in enumerate(opts)]
    with pytest.raises(InputError, match=message):
        build(OURS, *keys)


def segmentor(architecture: str, head: str, backbone: str) -> CfgNode:
    levels = ["res2", "res3", "res4", "res5"]
    opts = ["MODEL.META_ARCHITECTURE", architecture, "MODEL.BACKBONE.NAME", backbone]
    opts += ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    opts += ["MODEL.RESNETS.OUT_FEATURES", levels, "MODEL.FPN.IN_FEATURES", levels]
    opts += ["MODEL.FPN.OUT_CHANNELS", 16, "MODEL.MASK_ON", True]
    opts += ["MODEL.RPN.IN_FEATURES", ["p2", "p3"], "MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64]]]
    opts += ["MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["p2"]]
    opts += ["MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1]
    opts += ["MODEL.ROI_BOX_HEAD.FC_DIM", 16]
    return config(head, *opts, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead")


def test_images_of_odd_and_different_sizes():
    cfg = segmentor("SemanticSegmentor", OURS, "build_resnet_lda_aqu_fpn_backbone")
    model = build_model(cfg)
    images = [
        {
            "image": torch.randint(0, 256, (3, h, w), dtype=torch.uint8),
            "sem_seg": torch.randint(0, 7, (h, w)),
            "height": 2 * h,
            "width": w,
        }
        for h, w in ((70, 90), (47, 33))
    ]
    assert model(images)["loss_sem_seg"].isfinite()
    shapes = [output["sem_seg"].shape for output in model.eval()(images)]
    assert shapes == [(7, 140, 90), (7, 94, 33)]


def test_model_zoo_checkpoint_loads(tmp_path):
    """Detectron2's own Panoptic FPN, saved: the upsamplers alone are missing."""
    theirs = build_model(segmentor("PanopticFPN", THEIRS, "build_resnet_fpn_backbone"))
    torch.save({"model": theirs.state_dict()}, tmp_path / "zoo.pth")
    ours = build_model(segmentor("PanopticFPN", OURS, "build_resnet_lda_aqu_fpn_backbone"))
    Checkpointer(ours, complete=True).load(str(tmp_path / "zoo.pth"))
    state = ours.state_dict()
    for name, value in theirs.state_dict().items():
        assert torch.equal(state[name], value), name
    upsamplers = [f"{name}." for name, m in ours.named_modules() if isinstance(m, LDAAQU)]
    missing = set(state) - set(theirs.state_dict())
    assert len(upsamplers) == 9 and all(key.startswith(tuple(upsamplers)) for key in missing)


def test_a_batch_without_labels_has_the_loss_0():
    head = build(OURS)
    features, targets = inputs()
    loss = head(features, torch.full_like(targets, 255))[1]["loss_sem_seg"]
    loss.backward()
    assert loss == 0
    assert all(not parameter.grad.any() for parameter in head.parameters())
