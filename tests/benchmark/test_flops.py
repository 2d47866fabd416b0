import pytest
import torch
from lda_aqu import UPSAMPLER_REGISTRY
from lda_aqu.benchmark.flops import FlopCount, count_flops
from lda_aqu.benchmark.implementations import parse_implementation
from lda_aqu.benchmark.model_workload import ModelWorkload
from lda_aqu.benchmark.module_workload import ModuleWorkload
from lda_aqu.benchmark.published_algorithm import PublishedLDAAQU
from lda_aqu.benchmark.settings import Setting, Step
from lda_aqu.ops import local_deformable_attention, reassemble, similarity
from torch import nn
from torch.nn import functional as F


def count(function, *args) -> FlopCount:
    with torch.no_grad():
        return count_flops(lambda: function(*args))


@pytest.mark.parametrize("heads, with_bias", [(1, True), (2, False)])
def test_the_attention(heads, with_bias):
    query, key, value = torch.rand(2, 8, 6, 10), torch.rand(2, 8, 3, 5), torch.rand(2, 16, 3, 5)
    offsets = torch.rand(2, 4, 9, 2, 6, 10)
    bias = torch.rand(heads, 9, 8 // heads) if with_bias else None
    samples = 2 * 60 * 9  # of images, output pixels and points
    by_hand = {
        "coordinates of 4 groups": samples * 4 * 2,
        "bilinear reads": samples * (8 + 16) * 4,
        "bias": samples * 8 * with_bias,
        "logits": samples * 8,
        "scale and softmax": samples * heads * (1 + 3),
        "sum of values": samples * 16,
    }
    counted = count(local_deformable_attention, query, key, value, offsets, bias, heads, "plain")
    assert counted.total == sum(by_hand.values())


def test_reassembly_and_similarity():
    x, weights = torch.rand(2, 6, 3, 5), torch.rand(2, 3, 9, 6, 10)
    assert count(reassemble, x, weights).total == 2 * 6 * 60 * 9
    assert count(similarity, x, torch.rand(2, 6, 6, 10), 5).total == 2 * 25 * 60 * 6


@pytest.mark.parametrize("name", ["LAU", "LDAAQU", "GuidedLDAAQU"])
def test_fused_operators_count_as_those_that_they_stand_for(name):
    module = parse_implementation(f"{name}:reduction=2").build(16)  # d = 8, in 2 groups of 4
    guide = [torch.rand(2, 16, 6, 10)] if name == "GuidedLDAAQU" else []
    counted = count(module, torch.rand(2, 16, 3, 5), *guide)
    pixels, outputs = 2 * 15, 2 * 60
    network = 8 * 9 + 5 * 8 + 8 + 2 * 4 * 18 * 9  # convolution, norm, GELU, convolution
    resize = 0 if guide else 4 * 8
    predicted = (network + 2 * 2 * 18) * (name != "LAU")
    flops = counted.by_operator
    assert (
        flops.get("predict_offsets", 0) + flops.get("upsample_bilinear2d", 0)
        == (predicted + resize) * outputs
    )
    projected = (5 * 16 + 16 * 8) * outputs if guide else 0
    both = 5 * 16 + (1 if guide else 2) * 16 * 8
    assert flops["project_normalized"] == both * pixels + projected


def test_the_published_algorithm():
    module = PublishedLDAAQU(16, reduction=2)  # d = 8, in 2 groups of 4
    flops = count(module, torch.rand(1, 16, 3, 5)).by_operator
    pixels, outputs = 15, 60
    assert flops["convolution"] == (
        2 * 16 * 8 * pixels  # query and key
        + 8 * 9 * outputs  # depthwise
        + 2 * 4 * 18 * 9 * outputs  # offsets of both groups
    )
    assert flops["upsample_bilinear2d"] == 4 * 8 * outputs
    assert flops["native_layer_norm"] == 5 * (16 * pixels + 8 * outputs)
    assert flops["gelu"] == 8 * outputs
    assert flops["grid_sampler_2d"] == 4 * 9 * (8 + 16) * outputs
    assert flops["_softmax"] == 3 * 9 * outputs


def test_lda_aqu_counts_as_the_published_algorithm():
    x = torch.rand(1, 64, 12, 20)
    ours = count(parse_implementation("LDAAQU").build(64), x).total
    assert ours == pytest.approx(count(PublishedLDAAQU(64), x).total, rel=0.1)


SIMPLE = [
    # function, shape of the input, FLOPs by hand
    (nn.ConvTranspose2d(4, 6, 3, 2), (1, 4, 5, 7), 4 * 6 * 9 * 35),
    (nn.Conv2d(4, 8, 3, groups=2), (1, 4, 5, 7), 8 * 2 * 9 * 15),
    (nn.Linear(4, 8), (2, 3, 4), 2 * 3 * 4 * 8),
    (nn.Upsample(scale_factor=2, mode="nearest"), (1, 3, 4, 5), 3 * 80),
    (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 3, 4, 5), 4 * 3 * 80),
    (nn.Upsample(scale_factor=2, mode="bicubic"), (1, 3, 4, 5), 16 * 3 * 80),
    (nn.AvgPool2d(2), (1, 3, 4, 6), 3 * 6 * 4),
    (nn.AvgPool2d((1, 3)), (1, 3, 4, 6), 3 * 8 * 3),
    (nn.BatchNorm2d(3).eval(), (1, 3, 4, 6), 2 * 72),
    (nn.PixelShuffle(2), (1, 4, 3, 3), 0),
    (lambda x: x + 1.0, (2, 3), 6),
    (lambda x: x.softmax(1), (2, 3), 18),
    (lambda x: x.sum(1), (2, 3), 6),
    (lambda x: x.sigmoid_(), (2, 3), 6),
    (lambda x: F.unfold(x, 3), (1, 2, 5, 5), 0),
    (lambda x: x.relu().clone() > 0, (2, 3), 0),
    (lambda x: torch.arange(6) * 2, (2, 3), 0),
]


@pytest.mark.parametrize("function, shape, by_hand", SIMPLE)
def test_operators_of_upsamplers(function, shape, by_hand):
    assert count(function, torch.rand(shape)).total == by_hand


@pytest.mark.parametrize("name", [*UPSAMPLER_REGISTRY])
def test_no_operator_of_a_registered_upsampler_is_left_out(name):
    step = Step("", 64, (4, 6), (8, 12))
    counted = count(ModuleWorkload(parse_implementation(name), step, Setting()).prepare())
    assert counted.uncounted == {}
    assert counted.total > 0


def test_an_unknown_operator_is_named():
    counted = count(torch.fft.fft, torch.rand(2, 3))
    assert counted.uncounted == {"_fft_r2c": 1}
    assert counted.total is None


@pytest.mark.parametrize("part", ["backbone", "detector"])
def test_a_model(tiny_config, part):
    opts = ("MODEL.FPN.UPSAMPLER", "Nearest")
    workload = ModelWorkload(str(tiny_config), Setting(), opts, part, (64, 96))
    counted = count(workload.prepare())
    assert counted.uncounted == {}
    # The 3x3 convolution that makes P2, 16 x 24, of 16 channels is one of many.
    assert counted.by_operator["convolution"] > 16 * 24 * 16 * 16 * 9
    # The first layer of the box head reads 7 x 7 cells of as many boxes as the config allows.
    boxes = counted.by_operator.get("addmm", 0)
    assert boxes >= 30 * 7 * 7 * 16 * 32 if part == "detector" else boxes == 0
