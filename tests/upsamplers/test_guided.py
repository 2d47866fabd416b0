"""What holds for every upsampler with a high-resolution guide."""

import pytest
import torch
from gradients import gradcheck
from lda_aqu import UPSAMPLER_REGISTRY, build_upsampler
from lda_aqu.errors import InputError
from random_tensors import normals
from randomized import randomized
from torch import Tensor

NAMES = [n for n in UPSAMPLER_REGISTRY if n not in UPSAMPLER_REGISTRY.unguided()]
CHANNELS = 32


def maps(
    input_size: tuple[int, int],
    guide_size: tuple[int, int],
    batch: int = 2,
    guide_channels: int = CHANNELS,
) -> tuple[Tensor, Tensor]:
    normal = normals(1)
    return normal(batch, CHANNELS, *input_size), normal(batch, guide_channels, *guide_size)


def test_the_guided_are_those():
    assert {"A2U", "FADE", "FADELite", "FreqFusion", "IndexNet", "SAPAB"} <= set(NAMES)
    assert {"Bilinear", "LDAAQU", "Nearest"} <= set(UPSAMPLER_REGISTRY.unguided())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "input_size, guide_size",
    [((3, 4), (6, 8)), ((3, 4), (5, 7)), ((3, 4), (11, 6)), ((4, 5), (2, 3)), ((1, 1), (1, 1))],
)
def test_the_output_has_the_guides_size_and_both_maps_matter(name, input_size, guide_size):
    x, guide = (m.requires_grad_() for m in maps(input_size, guide_size))
    upsampler = randomized(name, CHANNELS)
    y = upsampler(x, guide)
    assert y.shape == guide.shape and y.dtype == x.dtype
    y.square().sum().backward()
    for gradient in (x.grad, guide.grad, *(p.grad for p in upsampler.parameters())):
        assert gradient.isfinite().all()
    assert x.grad.any()
    if guide_size != (1, 1):  # where a normalisation over positions may leave nothing of it
        assert guide.grad.any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("guide_channels", [16, 64])
def test_a_guide_of_other_channels(name, guide_channels):
    options = {"norm_groups": 8} if name == "A2U" else {}
    x, guide = (m.requires_grad_() for m in maps((3, 4), (6, 7), guide_channels=guide_channels))
    upsampler = randomized(name, CHANNELS, guide_channels=guide_channels, **options)
    y = upsampler(x, guide)
    assert y.shape == (2, CHANNELS, 6, 7)
    y.square().sum().backward()
    assert all(t.grad.isfinite().all() for t in (x, guide, *upsampler.parameters()))
    assert x.grad.any() and guide.grad.any()
    with pytest.raises(InputError, match=rf"guides \(N, {guide_channels}, H, W\), got \(2, 32, 6"):
        upsampler(x, torch.zeros(2, CHANNELS, 6, 7))


@pytest.mark.parametrize("name", NAMES)
def test_the_guide_has_the_inputs_channels_if_not_told(name):
    def shapes(**options: int) -> dict[str, torch.Size]:
        return {k: v.shape for k, v in randomized(name, CHANNELS, **options).state_dict().items()}

    assert shapes() == shapes(guide_channels=CHANNELS)
    with pytest.raises(InputError, match="guide_channels must be positive, got 0"):
        randomized(name, CHANNELS, guide_channels=0)


@pytest.mark.parametrize("name", NAMES)
def test_empty_batch(name):
    x, guide = (m.requires_grad_() for m in maps((3, 4), (6, 8), batch=0))
    y = randomized(name, CHANNELS)(x, guide)
    assert y.shape == guide.shape
    y.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_batch_are_independent(name):
    upsampler = randomized(name, CHANNELS).eval().double()
    x, guide = (m.double() for m in maps((3, 4), (6, 8)))
    together = upsampler(x, guide)
    apart = [upsampler(x[n : n + 1], guide[n : n + 1]) for n in range(2)]
    torch.testing.assert_close(together, torch.cat(apart))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("guide_size", [(4, 6), (3, 5)])
def test_gradients(name, guide_size):
    upsampler = randomized(name, CHANNELS).double()
    x, guide = (m.double().requires_grad_() for m in maps((2, 3), guide_size))
    names, parameters = zip(*upsampler.named_parameters(), strict=True)

    def run(x, guide, *values):
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(upsampler, state, (x, guide))

    assert gradcheck(run, (x, guide, *parameters))


@pytest.mark.parametrize("name", NAMES)
def test_memory_formats_agree(name):
    upsampler = randomized(name, CHANNELS).double()
    x, guide = (m.double() for m in maps((3, 4), (6, 8)))
    expected = upsampler(x, guide)
    x, guide, upsampler = (m.to(memory_format=torch.channels_last) for m in (x, guide, upsampler))
    torch.testing.assert_close(upsampler(x, guide), expected)


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name, device):
    upsampler = randomized(name, CHANNELS)
    for parameter in upsampler.parameters():
        parameter.data /= 3  # softmaxes that are not one-hot, which rounding could turn over
    x, guide = (m.requires_grad_() for m in maps((3, 4), (6, 8)))
    expected = upsampler(x, guide)
    with torch.autocast(device.type, torch.bfloat16):
        y = upsampler(x, guide)
        halved = upsampler(x.bfloat16(), guide.bfloat16())
    y.sum().backward()
    assert y.dtype == torch.float32 and halved.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 for p in upsampler.parameters())
    for result in (y, halved.float()):
        assert 0 < (result - expected).abs().mean() < 0.03 * expected.abs().mean()


# At 256 channels; what is published is counted in whole models, of 3 in Faster R-CNN's FPN and 6 in
# SegFormer-B1 (tables of github.com/poppinace/sapa and, for FADE, github.com/poppinace/fade).
@pytest.mark.parametrize(
    "name, parameters, published",
    [
        ("SAPAB", 17_472, {3: "0.05", 6: "0.10"}),
        ("FADE", 47_514, {6: "0.29"}),
        ("FADELite", 13_332, {}),
        ("FreqFusion", 62_898, {}),
        ("A2U", 10_790, {3: "0.03", 6: "0.06"}),
        ("IndexNet", 2_100_224, {3: "6.30", 6: "12.60"}),
    ],
)
def test_parameters_at_256_channels(name, parameters, published):
    assert sum(p.numel() for p in build_upsampler(name, 256).parameters()) == parameters
    for count, millions in published.items():
        assert f"{count * parameters / 1e6:.2f}" == millions


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("FADE", {"kernel_size": 4}, "kernel_size must be odd and positive, got 4"),
        ("FADE", {"encoder_kernel_size": 0}, "encoder_kernel_size must be odd"),
        ("FADE", {"compressed_channels": 0}, "compressed_channels must be positive, got 0"),
        ("FADELite", {"kernel_size": 0}, "kernel_size must be odd and positive, got 0"),
        ("FreqFusion", {"compressed_channels": 0}, "compressed_channels must be positive, got 0"),
        ("FreqFusion", {"low_pass_kernel_size": 4}, "low_pass_kernel_size must be odd"),
        ("FreqFusion", {"num_groups": 5}, r"\(32\) is not a multiple of num_groups \(5\)"),
        ("SAPAB", {"kernel_size": 2}, "kernel_size must be odd"),
        ("SAPAB", {"embedding_dim": 0}, "embedding_dim must be positive, got 0"),
        ("A2U", {"kernel_size": -1}, "kernel_size must be odd"),
        ("A2U", {"encoder_kernel_size": 1}, "encoder_kernel_size must be at least 2, got 1"),
        (
            "A2U",
            {"norm_groups": 24},
            r"guide_channels \(32\) is not a multiple of norm_groups \(24\)",
        ),
        ("A2U", {"norm_groups": 0}, r"norm_groups \(0\)"),
        ("A2U", {"guide_channels": 48}, r"guide_channels \(48\) is not a multiple of norm_groups"),
        ("LDAAQU", {"guide_channels": 48}, r"LDAAQU has no guide, so no guide_channels \(48\)"),
        (
            "GuidedLDAAQU",
            {"guide_channels": 4, "init": "bilinear"},
            "guide_channels must be at least in_channels / reduction, 8, got 4",
        ),
    ],
)
def test_values_that_do_not_fit_raise(name, options, message):
    with pytest.raises(InputError, match=message):
        build_upsampler(name, CHANNELS, **options)
