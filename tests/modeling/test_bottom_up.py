"""Pyramids on other backbones than ResNet."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone, build_model
from lda_aqu import add_lda_aqu_config
from lda_aqu.errors import InputError
from lda_aqu.modeling import TimmBackbone

RCNN, RETINANET = "build_resnet_lda_aqu_fpn_backbone", "build_retinanet_resnet_lda_aqu_fpn_backbone"

# Builder, names of its maps, and keys that make it small.
BACKBONES = {
    "build_swin_backbone": (
        ["p0", "p1", "p2", "p3"],
        "MODEL.SWIN.EMBED_DIM 8 MODEL.SWIN.DEPTHS (1,1,1,1) MODEL.SWIN.NUM_HEADS (1,1,1,1)",
    ),
    "build_mvit_backbone": (
        ["scale2", "scale3", "scale4", "scale5"],
        "MODEL.MVIT.EMBED_DIM 8 MODEL.MVIT.DEPTH 8 MODEL.MVIT.LAST_BLOCK_INDEXES (0,2,4,7)",
    ),
    "build_regnet_backbone": (
        ["s1", "s2", "s3", "s4"],
        "MODEL.RESNETS.NORM BN MODEL.REGNET.DEPTH 8 MODEL.REGNET.W_A 12.0 MODEL.REGNET.W_0 8 "
        "MODEL.REGNET.W_M 2.09 MODEL.REGNET.GROUP_WIDTH 8",
    ),
    "build_timm_backbone": (
        ["res2", "res3", "res4", "res5"],
        "MODEL.TIMM.NAME mobilenetv3_small_050",
    ),
}


def config(bottom_up: str, *opts: object, builder: str = RCNN, first: int = 0):
    """A pyramid on a small backbone; RetinaNet's leaves the first map out."""
    names, small = BACKBONES[bottom_up]
    cfg = get_cfg()
    add_lda_aqu_config(cfg)
    cfg.merge_from_list(["MODEL.DEVICE", str(torch.get_default_device())])
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", builder, "MODEL.BACKBONE.FREEZE_AT", 0])
    cfg.merge_from_list(["MODEL.FPN.BOTTOM_UP", bottom_up, "MODEL.FPN.IN_FEATURES", names[first:]])
    cfg.merge_from_list(small.split())
    cfg.merge_from_list(["MODEL.FPN.OUT_CHANNELS", 16, *opts])
    return cfg


def test_every_builder_has_a_pyramid_of_either_kind():
    pytest.importorskip("timm")
    for bottom_up in BACKBONES:
        for builder, first in ((RCNN, 0), (RETINANET, 1)):
            cfg = config(bottom_up, builder=builder, first=first)
            fpn = build_backbone(cfg)
            maps = fpn(torch.randn(2, 3, 64, 96))
            strides = {name: shape.stride for name, shape in fpn.output_shape().items()}
            assert list(strides.values()) == [2 ** (2 + first + i) for i in range(5)]
            assert {name: tuple(y.shape) for name, y in maps.items()} == {
                name: (2, 16, -(-64 // stride), -(-96 // stride))
                for name, stride in strides.items()
            }
            sum(y.sum() for y in maps.values()).backward()
            # Several processes refuse to train what has no gradient.
            trained = {name: p for name, p in fpn.named_parameters() if p.requires_grad}
            assert not [name for name, p in trained.items() if p.grad is None]
            modules = {name.split(".")[0] for name in trained}
            assert {"bottom_up", f"fpn_upsample{2 + first}"} <= modules


def test_a_head_without_pyramid_on_swin():
    names, _ = BACKBONES["build_swin_backbone"]
    cfg = config(
        *("build_swin_backbone", "MODEL.META_ARCHITECTURE", "SemanticSegmentor"),
        *("MODEL.SEM_SEG_HEAD.NAME", "UPerNetHead", "MODEL.SEM_SEG_HEAD.IN_FEATURES", names),
        *("MODEL.UPERNET.AUX_IN_FEATURE", "p2", "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
        *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3, "MODEL.SEM_SEG_HEAD.NORM", "BN"),
        builder="build_swin_backbone",
    )
    model = build_model(cfg).eval()
    (result,) = model([{"image": torch.zeros(3, 64, 64), "height": 64, "width": 64}])
    assert result["sem_seg"].shape == (3, 64, 64)


def test_freezes_the_first_stages():
    fpn = build_backbone(config("build_swin_backbone", "MODEL.BACKBONE.FREEZE_AT", 2))
    frozen = {n.split(".")[1] for n, p in fpn.named_parameters() if not p.requires_grad}
    assert frozen == {"patch_embed", "layers"}
    assert all(p.requires_grad for p in fpn.bottom_up.layers[1].parameters())


@pytest.mark.parametrize(
    "bottom_up, opts, message",
    [
        (
            "build_swin_backbone",
            ["MODEL.FPN.BOTTOM_UP", "build_swin_backbon"],
            "MODEL.FPN.BOTTOM_UP 'build_swin_backbon' is not in BACKBONE_REGISTRY; "
            "did you mean build_swin_backbone?",
        ),
        (
            "build_swin_backbone",
            ["MODEL.FPN.BOTTOM_UP", RETINANET],
            f"MODEL.FPN.BOTTOM_UP {RETINANET} is a pyramid itself",
        ),
        (
            "build_regnet_backbone",
            ["MODEL.FPN.IN_FEATURES", []],
            "MODEL.FPN.IN_FEATURES is empty: name maps of build_regnet_backbone, among ",
        ),
        (
            "build_regnet_backbone",
            ["MODEL.FPN.IN_FEATURES", ["res2"]],
            "MODEL.FPN.IN_FEATURES 'res2': MODEL.FPN.BOTTOM_UP build_regnet_backbone gives "
            "s1, s2, s3, s4",
        ),
        (
            "build_mvit_backbone",
            ["MODEL.BACKBONE.FREEZE_AT", 2],
            "MODEL.BACKBONE.FREEZE_AT 2: build_mvit_backbone freezes nothing, set it to 0",
        ),
        ("build_timm_backbone", ["MODEL.TIMM.NAME", "resnet51q_"], "MODEL.TIMM.NAME 'resnet51q_'"),
        ("build_timm_backbone", ["MODEL.TIMM.NAME", "vit_tiny_patch16_224"], "no pyramid"),
    ],
)
def test_mistakes_are_named(bottom_up, opts, message):
    if "timm" in bottom_up:
        pytest.importorskip("timm")
    with pytest.raises(InputError) as error:
        build_backbone(config(bottom_up, *opts))
    assert message in str(error.value)


def test_timm_maps_have_the_channels_second():
    """In timm they are last in this network."""
    pytest.importorskip("timm")
    backbone = TimmBackbone("mambaout_femto").eval()
    for name, y in backbone(torch.zeros(1, 3, 64, 96)).items():
        shape = backbone.output_shape()[name]
        assert y.shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)


def test_weights_that_timm_cannot_download(monkeypatch):
    timm = pytest.importorskip("timm")

    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match="^MODEL.TIMM.NAME 'mobile.* ConnectionError: no network"):
        build_backbone(config("build_timm_backbone", "MODEL.TIMM.PRETRAINED", True))


def test_regnet_of_grey_images():
    cfg = config("build_regnet_backbone", "MODEL.PIXEL_MEAN", [0.0])
    assert "p2" in build_backbone(cfg)(torch.zeros(2, 1, 64, 96))
