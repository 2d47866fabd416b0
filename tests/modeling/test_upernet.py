import lda_aqu.modeling  # noqa: F401  (registers the head)
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_sem_seg_head
from gradients import unreached_parameters
from lda_aqu import LDAAQU, add_lda_aqu_config
from lda_aqu.errors import InputError
from random_tensors import normals
from recorder import Recorder
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = ["res2", "res3", "res4", "res5"]
SHAPES = {name: ShapeSpec(channels=8 * 2**i, stride=4 * 2**i) for i, name in enumerate(LEVELS)}
CLASSES = 7
BILINEAR = ["MODEL.SEM_SEG_HEAD.UPSAMPLER", "Bilinear"]


def config(*opts: object) -> CfgNode:
    cfg = get_cfg()
    add_lda_aqu_config(cfg)
    head = {"NAME": "UPerNetHead", "IN_FEATURES": LEVELS, "NUM_CLASSES": CLASSES}
    head |= {"CONVS_DIM": 16, "NORM": "BN"}
    flat = [part for key, value in head.items() for part in (f"MODEL.SEM_SEG_HEAD.{key}", value)]
    cfg.merge_from_list([*flat, "MODEL.UPERNET.AUX_CHANNELS", 12])
    cfg.merge_from_list(["MODEL.DEVICE", str(torch.get_default_device()), *opts])
    return cfg


def build(*opts: object) -> nn.Module:
    torch.manual_seed(0)
    return build_sem_seg_head(config(*opts), SHAPES)


def inputs(height: int, width: int) -> tuple[dict[str, Tensor], Tensor]:
    normal = normals(1)
    features = {
        name: normal(2, s.channels, -(-height // s.stride), -(-width // s.stride))
        for name, s in SHAPES.items()
    }
    targets = (CLASSES / 2 + normal(2, height, width)).clamp(0, CLASSES - 1).long()
    targets[:, :9] = 255
    return features, targets


def reference(head: nn.Module, features: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits and auxiliary logits of the baseline, from the paper, without norms and dropout."""

    def conv(x: Tensor, layer: nn.Module) -> Tensor:
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)

    def resize(x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)

    c2, c3, c4, c5 = (features[name] for name in LEVELS)
    pooling = head.pyramid_pooling
    pooled = [
        resize(conv(F.adaptive_avg_pool2d(c5, scale), pooling.branches[i][1]).relu(), c5)
        for i, scale in enumerate((1, 2, 3, 6))
    ]
    f5 = conv(torch.cat([c5, *pooled], 1), pooling.bottleneck).relu()
    f4 = conv(c4, head.laterals[2]).relu()
    f4 = f4 + resize(f5, f4)
    f3 = conv(c3, head.laterals[1]).relu()
    f3 = f3 + resize(f4, f3)
    f2 = conv(c2, head.laterals[0]).relu()
    f2 = f2 + resize(f3, f2)
    p2, p3, p4 = (conv(f, head.outputs[i]).relu() for i, f in enumerate((f2, f3, f4)))
    fused = conv(torch.cat([p2, resize(p3, p2), resize(p4, p2), resize(f5, p2)], 1), head.fusion)
    aux = conv(c4, head.aux_classifier[0]).relu()
    return conv(fused.relu(), head.classifier[1]), conv(aux, head.aux_classifier[2])


@pytest.mark.parametrize("size", [(64, 96), (70, 90), (33, 47)])
def test_bilinear_is_the_papers_head(size):
    opts = ["MODEL.SEM_SEG_HEAD.NORM", "", "MODEL.UPERNET.DROPOUT", 0.0]
    head = build(*BILINEAR, *opts, "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 0.5)
    features, targets = inputs(*size)
    with torch.no_grad():
        expected = [
            F.interpolate(x, scale_factor=stride, mode="bilinear", align_corners=False)
            for x, stride in zip(reference(head, features), (4, 16), strict=True)
        ]
        logits, _ = head.eval()(features)
        none, losses = head.train()(features, targets)
    torch.testing.assert_close(logits, expected[0])
    height, width = size
    entropies = [
        F.cross_entropy(x[:, :, :height, :width], targets, ignore_index=255) for x in expected
    ]
    assert none is None and losses.keys() == {"loss_sem_seg", "loss_sem_seg_aux"}
    torch.testing.assert_close(losses["loss_sem_seg"], 0.5 * entropies[0])
    torch.testing.assert_close(losses["loss_sem_seg_aux"], 0.5 * 0.4 * entropies[1])


def test_twins_start_from_the_same_weights():
    baseline, head = build(*BILINEAR), build()
    state = head.state_dict()
    for name, value in baseline.state_dict().items():
        assert torch.equal(state[name], value), name
    assert {name for name, m in head.named_modules() if isinstance(m, LDAAQU)} == {
        f"upsamplers.{i}" for i in range(3)
    }


def test_every_upsampler_can_be_replaced():
    head = build(
        *["MODEL.UPERNET.FUSION_UPSAMPLER", "LDAAQU", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 16],
        *["MODEL.SEM_SEG_HEAD.LOGITS_UPSAMPLER", "LDAAQU"],
    )
    factors = {name: m.scale_factor for name, m in head.named_modules() if isinstance(m, LDAAQU)}
    assert factors == {f"upsamplers.{i}": 2 for i in range(3)} | {
        f"fusion_upsamplers.{i}": 2 ** (i + 1) for i in range(3)
    } | {"logits_upsampler": 4}
    features, targets = inputs(70, 90)
    assert not unreached_parameters(head, lambda: sum(head(features, targets)[1].values()))
    assert head.eval()(features)[0].shape == (2, 16, 72, 92)


def test_the_guide_is_the_lateral_map():
    head = build(*BILINEAR).eval()
    features, _ = inputs(70, 90)
    expected = head(features)[0]
    head.upsamplers = nn.ModuleList(Recorder(16) for _ in range(3))
    assert torch.equal(head(features)[0], expected)
    for lateral, level, upsampler in zip(head.laterals, LEVELS, head.upsamplers, strict=False):
        assert torch.equal(upsampler.guide, lateral(features[level])), level


def test_dropout_in_training_alone():
    head = build(*BILINEAR, "MODEL.UPERNET.DROPOUT", 0.5, "MODEL.SEM_SEG_HEAD.NORM", "")
    features, targets = inputs(64, 64)
    for name in ("loss_sem_seg", "loss_sem_seg_aux"):
        assert head(features, targets)[1][name] != head(features, targets)[1][name]
    head.eval()
    assert torch.equal(head(features)[0], head(features)[0])


def test_features_are_ordered_by_stride():
    shuffled = build(*BILINEAR, "MODEL.SEM_SEG_HEAD.IN_FEATURES", LEVELS[::-1])
    features, _ = inputs(64, 64)
    assert torch.equal(shuffled.eval()(features)[0], build(*BILINEAR).eval()(features)[0])


def test_images_of_odd_and_different_sizes():
    opts = ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.RESNETS.DEPTH", 18]
    opts += ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", LEVELS]
    opts += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    torch.manual_seed(0)
    model = build_model(config(*opts))
    images = [
        {
            "image": torch.randint(0, 256, (3, h, w), dtype=torch.uint8),
            "sem_seg": torch.randint(0, CLASSES, (h, w)),
            "height": 2 * h,
            "width": w,
        }
        for h, w in ((70, 90), (47, 33))
    ]
    assert all(loss.isfinite() for loss in model(images).values())
    shapes = [output["sem_seg"].shape for output in model.eval()(images)]
    assert shapes == [(CLASSES, 140, 90), (CLASSES, 94, 33)]


@pytest.mark.parametrize(
    "opts, message",
    [
        (["SEM_SEG_HEAD.UPSAMPLER", "Carafe"], "SEG_HEAD.UPSAMPLER 'Carafe'.*known: .*Bilinear"),
        (["UPERNET.FUSION_UPSAMPLER", "Carafe"], "MODEL.UPERNET.FUSION_UPSAMPLER 'Carafe'"),
        (["SEM_SEG_HEAD.CONVS_DIM", 18], r"MODEL.SEM_SEG_HEAD.CONVS_DIM 18.*reduction \(4\)"),
        (["SEM_SEG_HEAD.LOGITS_UPSAMPLER", "LDAAQU"], "MODEL.SEM_SEG_HEAD.NUM_CLASSES 7"),
        (
            ["SEM_SEG_HEAD.IN_FEATURES", ["res2", "p5"]],
            "MODEL.SEM_SEG_HEAD.IN_FEATURES p5: the backbone's maps are res2, res3, res4, res5",
        ),
        (["SEM_SEG_HEAD.IN_FEATURES", []], "MODEL.SEM_SEG_HEAD.IN_FEATURES is empty"),
        (["UPERNET.AUX_IN_FEATURE", "res6"], "MODEL.UPERNET.AUX_IN_FEATURE res6"),
        (["SEM_SEG_HEAD.COMMON_STRIDE", 8], "MODEL.SEM_SEG_HEAD.COMMON_STRIDE 8: .* which is 4"),
        (["UPERNET.POOL_SCALES", [1, 0]], r"MODEL.UPERNET.POOL_SCALES \[1, 0\]"),
        (["UPERNET.POOL_SCALES", []], "MODEL.UPERNET.POOL_SCALES"),
        (["UPERNET.DROPOUT", 1.0], "MODEL.UPERNET.DROPOUT 1.0"),
    ],
)
def test_bad_values_name_the_key(opts, message):
    key, value = opts
    with pytest.raises(InputError, match=message):
        build(f"MODEL.{key}", value)


def test_a_batch_without_labels_has_losses_of_0():
    head = build()
    features, targets = inputs(64, 64)
    losses = head(features, torch.full_like(targets, 255))[1]
    sum(losses.values()).backward()
    assert list(losses.values()) == [0, 0]
    assert all(not parameter.grad.any() for parameter in head.parameters())
