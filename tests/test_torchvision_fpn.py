"""torchvision's pyramid and detectors with upsamplers; no weights are downloaded."""

from collections import OrderedDict

import pytest
import torch
from lda_aqu import UPSAMPLER_REGISTRY
from lda_aqu.errors import InputError
from lda_aqu.torchvision_fpn import UpsamplerFeaturePyramidNetwork, use_upsampler
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

CHANNELS = [8, 16, 24]
UNTRAINED = {"weights": None, "weights_backbone": None, "num_classes": 3}
FEW = {"rpn_post_nms_top_n_test": 20, "rpn_post_nms_top_n_train": 20, "box_detections_per_img": 5}
SMALL = {**UNTRAINED, **FEW, "min_size": 64, "max_size": 96}


def maps(*sizes: tuple[int, int]) -> OrderedDict[str, Tensor]:
    made = (torch.randn(2, c, *size) for c, size in zip(CHANNELS, sizes, strict=True))
    return OrderedDict(zip("abc", made, strict=True))


@pytest.mark.parametrize("extra_blocks", [LastLevelMaxPool(), LastLevelP6P7(24, 32), None])
@pytest.mark.parametrize("norm_layer", [None, nn.BatchNorm2d])
@pytest.mark.parametrize("sizes", [((16, 24), (8, 12), (4, 6)), ((15, 21), (8, 11), (4, 6))])
def test_nearest_is_torchvisions_bit_for_bit(extra_blocks, norm_layer, sizes):
    torch.manual_seed(0)
    theirs = FeaturePyramidNetwork(CHANNELS, 32, extra_blocks, norm_layer)
    ours = UpsamplerFeaturePyramidNetwork(
        CHANNELS, 32, extra_blocks, norm_layer, upsampler="Nearest"
    )
    ours.load_state_dict(theirs.state_dict())
    x = maps(*sizes)
    expected = theirs(x)
    actual = ours(x)
    assert list(actual) == list(expected)
    for name in expected:
        assert torch.equal(actual[name], expected[name])


@pytest.mark.parametrize("name", list(UPSAMPLER_REGISTRY))
def test_every_upsampler(name):
    pyramid = UpsamplerFeaturePyramidNetwork(CHANNELS, 32, LastLevelMaxPool(), upsampler=name)
    sizes = ((15, 21), (8, 11), (4, 6))
    outputs = pyramid(maps(*sizes))
    assert [y.shape for y in outputs.values()] == [(2, 32, *s) for s in (*sizes, (2, 3))]
    sum(y.square().sum() for y in outputs.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pyramid.parameters())


def test_the_coarse_map_reaches_the_fine_one_through_both_upsamplers():
    pyramid = UpsamplerFeaturePyramidNetwork(CHANNELS, 32, upsampler="LDAAQU", reduction=8)
    assert [up.proj_q.out_channels for up in pyramid.upsamplers] == [4, 4]
    calls = []
    for level, upsampler in enumerate(pyramid.upsamplers):
        upsampler.register_forward_hook(
            lambda module, args, output, level=level: calls.append((level, output.shape[2:]))
        )
    x = maps((16, 24), (8, 12), (4, 6))
    x["c"].requires_grad_()
    pyramid(x)["a"].sum().backward()
    assert calls == [(1, (8, 12)), (0, (16, 24))] and x["c"].grad.any()


def test_a_detector_keeps_its_weights_and_trains():
    torch.manual_seed(0)
    state = maskrcnn_resnet50_fpn(**SMALL).state_dict()
    model = use_upsampler(maskrcnn_resnet50_fpn(**SMALL), "LDAAQU")
    assert isinstance(model.backbone.fpn, UpsamplerFeaturePyramidNetwork)
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert {key.rpartition(".upsamplers.")[0] for key in left.missing_keys} == {"backbone.fpn"}

    images = [torch.rand(3, 64, 80), torch.rand(3, 70, 64)]
    target = {
        "boxes": torch.tensor([[10.0, 10, 40, 50]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 64, 80, dtype=torch.uint8),
    }
    targets = [target, {**target, "masks": torch.ones(1, 70, 64, dtype=torch.uint8)}]
    sum(model(images, targets).values()).backward()
    for upsampler in model.backbone.fpn.upsamplers:
        assert all(p.grad.isfinite().all() for p in upsampler.parameters())
        assert upsampler.proj_k.weight.grad.any() and upsampler.conv_offset[3].weight.grad.any()
    with torch.no_grad():
        assert model.eval()(images)[0].keys() == {"boxes", "labels", "scores", "masks"}


def test_a_detector_with_nearest_is_torchvisions():
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn(**SMALL).eval()
    images = [torch.rand(3, 64, 80)]
    with torch.no_grad():
        expected = model(images)[0]
        state = model.state_dict()
        actual = use_upsampler(model, "Nearest")(images)[0]
    assert list(model.state_dict()) == list(state)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_upsamplers_are_like_the_layers_around_them():
    model = nn.Sequential(FeaturePyramidNetwork(CHANNELS, 32)).double().eval()
    use_upsampler(model, "LDAAQU", reduction=8)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert not any(module.training for module in model.modules())
    assert model[0].upsamplers[0].proj_q.out_channels == 4


class Other(FeaturePyramidNetwork):
    pass


@pytest.mark.parametrize(
    "pyramid, upsampler, options, message",
    [
        (Other(CHANNELS, 32), "LDAAQU", {}, "^1 is a Other, not torchvision's own"),
        (FeaturePyramidNetwork(CHANNELS, 32), "LDAAQUE", {}, "^unknown upsampler 'LDAAQUE'"),
        (FeaturePyramidNetwork(CHANNELS, 32), "LDAAQU", {"size": 3}, "has no option 'size'"),
        (FeaturePyramidNetwork(CHANNELS, 30), "LDAAQU", {}, r"\(30\) is not a multiple of red"),
    ],
)
def test_what_does_not_fit_changes_nothing(pyramid, upsampler, options, message):
    model = nn.Sequential(FeaturePyramidNetwork([8], 32), pyramid)
    before = [type(module) for module in model.modules()]
    with pytest.raises(InputError, match=message):
        use_upsampler(model, upsampler, **options)
    assert [type(module) for module in model.modules()] == before


def test_a_model_without_a_pyramid_is_sent_elsewhere():
    with pytest.raises(InputError, match="^Sequential has no torchvision .*replace_upsampling"):
        use_upsampler(nn.Sequential(nn.Conv2d(3, 3, 1)), "LDAAQU")
