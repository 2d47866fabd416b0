from functools import partial

import numpy as np
import oracle
import pytest
import torch
from lda_aqu import build_upsampler
from lda_aqu.errors import InputError
from randomized import assert_matches, randomized


def loops(x: np.ndarray, state: dict[str, np.ndarray], scale: int, kernel_size: int) -> np.ndarray:
    """The published steps for one image (C, H, W), one output pixel at a time."""

    def convolve(image: np.ndarray, name: str) -> np.ndarray:
        bias = state[f"{name}.bias"][:, None, None]
        return oracle.convolve(image, state[f"{name}.weight"]) + bias

    c, h, w = x.shape
    compressed = convolve(x, "channel_compressor")
    kernels = oracle.softmax(convolve(compressed, "kernel_space_generator"))
    offsets = convolve(compressed, "conv_offset")
    p = kernel_size // 2
    padded = np.pad(x, ((0, 0), (p, p), (p, p)))
    output = np.zeros((c, h * scale, w * scale))
    for i, j in np.ndindex(*output.shape[1:]):
        row, column = i // scale, j // scale
        part = i % scale * scale + j % scale
        dx, dy = offsets[part, row, column], offsets[scale**2 + part, row, column]
        kernel = oracle.bilinear_at(
            kernels, np.clip(row + dy, 0, h - 1), np.clip(column + dx, 0, w - 1)
        )
        window = padded[:, row : row + kernel_size, column : column + kernel_size]
        output[:, i, j] = window.reshape(c, -1) @ kernel
    return output


@pytest.mark.parametrize(
    "scale, size, options",
    [
        (2, (4, 6), {}),
        (2, (1, 1), {}),
        (2, (1, 5), {"kernel_size": 3}),
        (4, (3, 2), {"kernel_size": 3, "encoder_kernel_size": 1}),
        (3, (5, 2), {"compressed_channels": 2, "encoder_kernel_size": 5}),
        (1, (4, 4), {"kernel_size": 7}),
    ],
)
def test_matches_the_loops(scale, size, options):
    options = {"compressed_channels": 5, **options}
    module = randomized("DLU", 4, scale, std=0.5, **options).double()
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    kernel_size = options.get("kernel_size", 5)
    assert_matches(module, partial(loops, scale=scale, kernel_size=kernel_size), x)


def test_published_parameters():
    """Fu et al., ICPR 2024: 91 % fewer than CARAFE's at 16x; their repository: 0.6 MB, where CARAFE
    has 1.2, for the four of Faster R-CNN's FPN. Names are those of its ``DLUPack``."""

    def count(name: str, scale: int) -> int:
        return sum(p.numel() for p in build_upsampler(name, 256, scale).parameters())

    state = build_upsampler("DLU", 256).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "channel_compressor.weight": (64, 256, 1, 1),
        "channel_compressor.bias": (64,),
        "kernel_space_generator.weight": (25, 64, 3, 3),
        "kernel_space_generator.bias": (25,),
        "conv_offset.weight": (8, 64, 3, 3),
        "conv_offset.bias": (8,),
    }
    assert count("DLU", 2) == 35_489
    assert [f"{16 * count(name, 2) / 1e6:.1f}" for name in ("DLU", "CARAFE")] == ["0.6", "1.2"]
    assert f"{1 - count('DLU', 16) / count('CARAFE', 16):.0%}" == "91%"


def test_initial_values():
    module = build_upsampler("DLU", 64)
    bound = (6 / (64 + 64)) ** 0.5  # Xavier uniform
    assert 0.95 * bound < module.channel_compressor.weight.abs().max() <= bound
    assert module.kernel_space_generator.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert not module.conv_offset.weight.any()
    assert not any(convolution.bias.any() for convolution in module.children())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"compressed_channels": 0}, "compressed_channels must be positive, got 0"),
        ({"kernel_size": 4}, "kernel_size must be odd and positive, got 4"),
        ({"encoder_kernel_size": 2}, "encoder_kernel_size must be odd and positive, got 2"),
    ],
)
def test_values_that_do_not_fit_raise(options, message):
    with pytest.raises(InputError, match=message):
        build_upsampler("DLU", 8, **options)
