import pytest
import torch
from lda_aqu import UPSAMPLER_REGISTRY
from lda_aqu.benchmark.flops import count_model_flops, count_module_flops
from lda_aqu.benchmark.implementations import parse_implementation
from lda_aqu.benchmark.model_workload import ModelWorkload, noise_images
from lda_aqu.benchmark.published_algorithm import PublishedLDAAQU
from lda_aqu.benchmark.shapes import Step
from lda_aqu.benchmark.workload import Workload
from lda_aqu.ops import reassemble, similarity
from torch import nn
from torch.nn import functional as F


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function, *args):
        super().__init__()
        self.function, self.args = function, args

    def forward(self, *tensors):
        return self.function(*tensors, *self.args)


@pytest.mark.parametrize("heads, with_bias", [(1, True), (2, False)])
def test_the_operator(heads, with_bias):
    query, key, value = torch.rand(2, 8, 6, 10), torch.rand(2, 8, 3, 5), torch.rand(2, 16, 3, 5)
    offsets = torch.rand(2, 4, 9, 2, 6, 10)
    bias = torch.rand(heads, 9, 8 // heads) if with_bias else None
    operator = torch.ops.lda_aqu.local_deformable_attention
    module = Call(lambda *tensors: operator(*tensors, bias, heads, "plain"))
    count = count_module_flops(module, (query, key, value, offsets))
    samples = 2 * 60 * 9  # of images, output pixels and points
    by_hand = {
        "coordinates of 4 groups": samples * 4 * 2,
        "bilinear reads": samples * (8 + 16) * 4,
        "bias": samples * 8 * with_bias,
        "logits": samples * 8,
        "scale and softmax": samples * heads * (1 + 3),
        "sum of values": samples * 16,
    }
    assert count.by_operator == {"local_deformable_attention": sum(by_hand.values())}
    assert count.is_complete


def test_reassembly_and_similarity():
    x, weights = torch.rand(2, 6, 3, 5), torch.rand(2, 3, 9, 6, 10)
    count = count_module_flops(Call(reassemble), (x, weights))
    assert count.total == 2 * 6 * 60 * 9 and count.is_complete
    count = count_module_flops(Call(similarity, 5), (x, torch.rand(2, 6, 6, 10)))
    assert count.total == 2 * 25 * 60 * 6 and count.is_complete


@pytest.mark.parametrize("name", ["LAU", "LDAAQU"])
def test_fused_operators_count_as_those_that_they_stand_for(name):
    module = parse_implementation(f"{name}:reduction=2").build(16)  # d = 8, in 2 groups of 4
    count = count_module_flops(module, (torch.rand(2, 16, 3, 5),))
    pixels, outputs = 2 * 15, 2 * 60
    assert count.by_operator["project_normalized"] == (5 * 16 + 2 * 16 * 8) * pixels
    if name == "LDAAQU":
        network = 8 * 9 + 5 * 8 + 8 + 2 * 4 * 18 * 9  # convolution, norm, GELU, convolution
        assert count.by_operator["predict_offsets"] == (network + 2 * 2 * 18) * outputs
    assert count.by_operator["upsample_bilinear2d"] == 4 * 8 * outputs
    assert count.is_complete


def test_offsets_of_a_query_that_is_not_resized():
    module = parse_implementation("GuidedLDAAQU:reduction=2").build(16)
    count = count_module_flops(module, (torch.rand(2, 16, 3, 5), torch.rand(2, 16, 6, 10)))
    network = 8 * 9 + 5 * 8 + 8 + 2 * 4 * 18 * 9
    assert count.by_operator["predict_offsets"] == (network + 2 * 2 * 18) * 2 * 60
    assert "upsample_bilinear2d" not in count.by_operator and count.is_complete


def test_the_published_algorithm():
    module = PublishedLDAAQU(16, reduction=2)  # d = 8, in 2 groups of 4
    count = count_module_flops(module, (torch.rand(1, 16, 3, 5),))
    pixels, outputs = 15, 60
    assert count.is_complete
    assert count.by_operator["conv"] == (
        2 * 16 * 8 * pixels  # query and key
        + 8 * 9 * outputs  # depthwise
        + 2 * 4 * 18 * 9 * outputs  # offsets of both groups
    )
    assert count.by_operator["upsample_bilinear2d"] == 4 * 8 * outputs
    assert count.by_operator["layer_norm"] == 5 * (16 * pixels + 8 * outputs)
    assert count.by_operator["gelu"] == 8 * outputs
    assert count.by_operator["grid_sampler"] == 4 * 9 * (8 + 16) * outputs
    assert count.by_operator["softmax"] == 3 * 9 * outputs


def test_lda_aqu_counts_as_the_published_algorithm():
    step = Step("", 64, (12, 20), (24, 40))
    totals = []
    for module in (PublishedLDAAQU(64), parse_implementation("LDAAQU").build(64)):
        totals.append(count_module_flops(module, (torch.rand(1, 64, *step.input_size),)).total)
    assert totals[1] == pytest.approx(totals[0], rel=0.1)


SIMPLE = [
    # module, shape of the input, FLOPs by hand
    (nn.ConvTranspose2d(4, 6, 3, 2), (1, 4, 5, 7), 4 * 6 * 9 * 35),
    (nn.Conv2d(4, 8, 3, groups=2), (1, 4, 5, 7), 8 * 2 * 9 * 15),
    (nn.Upsample(scale_factor=2, mode="nearest"), (1, 3, 4, 5), 3 * 80),
    (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 3, 4, 5), 4 * 3 * 80),
    (nn.Upsample(scale_factor=2, mode="bicubic"), (1, 3, 4, 5), 16 * 3 * 80),
    (nn.AvgPool2d(2), (1, 3, 4, 6), 3 * 6 * 4),
    (nn.AvgPool2d((1, 3)), (1, 3, 4, 6), 3 * 8 * 3),
    (nn.PixelShuffle(2), (1, 4, 3, 3), 0),
    (Call(torch.add, 1.0), (2, 3), 6),
    (Call(torch.softmax, 1), (2, 3), 18),
    (Call(torch.sum, 1), (2, 3), 6),
    (Call(F.unfold, 3), (1, 2, 5, 5), 0),
    (Call(lambda x: x.sigmoid_()), (2, 3), 6),
]


@pytest.mark.parametrize("module, shape, by_hand", SIMPLE)
def test_operators_of_upsamplers(module, shape, by_hand):
    count = count_module_flops(module, (torch.rand(shape),))
    assert count.total == by_hand
    assert count.is_complete


@pytest.mark.parametrize("name", list(UPSAMPLER_REGISTRY))
def test_no_operator_of_a_registered_upsampler_is_left_out(name):
    workload = Workload(parse_implementation(name), Step("", 64, (4, 6), (8, 12)))
    module = workload.build()
    count = count_module_flops(module, workload.inputs(module))
    assert count.uncounted == {}
    assert count.total > 0


def test_an_unknown_operator_is_named():
    count = count_module_flops(Call(torch.special.bessel_j0), (torch.rand(2, 3),))
    assert count.uncounted == {"aten::special_bessel_j0": 1}
    assert not count.is_complete


def test_a_scripted_function_that_is_not_known_is_named():
    @torch.jit.script
    def cubed(x: torch.Tensor) -> torch.Tensor:
        return x * x * x

    assert count_module_flops(Call(cubed), (torch.rand(2, 3),)).uncounted == {"cubed": 1}


def test_a_model(tiny_config):
    workload = ModelWorkload(str(tiny_config), ("MODEL.FPN.UPSAMPLER", "Nearest"))
    model = workload.build()
    count = count_model_flops(model, noise_images(1, (64, 96)))
    assert count.is_complete
    # The 3x3 convolution that makes P2, 16 x 24, of 16 channels is one of many.
    assert count.by_operator["conv"] > 16 * 24 * 16 * 16 * 9
    # The first layer of the box head reads 7 x 7 cells of as many boxes as the config allows.
    assert count.by_operator["linear"] >= 30 * 7 * 7 * 16 * 32
