from functools import partial

import numpy as np
import oracle
import pytest
import torch
from lda_aqu import build_upsampler
from lda_aqu.errors import InputError
from randomized import assert_matches, randomized


def loops(x: np.ndarray, state: dict[str, np.ndarray], scale: int, kernel_size: int) -> np.ndarray:
    """The paper's equations for one image (C, H, W), one output pixel at a time."""
    compressed = oracle.convolve(x, state["channel_compressor.weight"])
    compressed += state["channel_compressor.bias"][:, None, None]
    encoded = oracle.convolve(compressed, state["content_encoder.weight"])
    encoded += state["content_encoder.bias"][:, None, None]
    c, h, w = x.shape
    p = kernel_size // 2
    padded = np.pad(x, ((0, 0), (p, p), (p, p)))
    output = np.zeros((c, h * scale, w * scale))
    for i in range(h * scale):
        for j in range(w * scale):
            row, column = i // scale, j // scale
            logits = encoded[i % scale * scale + j % scale :: scale**2, row, column]
            weights = np.exp(logits) / np.exp(logits).sum()
            window = padded[:, row : row + kernel_size, column : column + kernel_size]
            output[:, i, j] = window.reshape(c, -1) @ weights
    return output


@pytest.mark.parametrize(
    "scale, size, options",
    [
        (2, (4, 6), {}),
        (2, (1, 1), {}),
        (4, (3, 2), {"kernel_size": 3, "encoder_kernel_size": 1}),
        (3, (5, 2), {"compressed_channels": 2, "encoder_kernel_size": 5}),
        (1, (4, 4), {"kernel_size": 7}),
    ],
)
def test_matches_the_loops(scale, size, options):
    module = randomized("CARAFE", 4, scale, **{"compressed_channels": 5, **options}).double()
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    kernel_size = options.get("kernel_size", 5)
    assert_matches(module, partial(loops, scale=scale, kernel_size=kernel_size), x)


@pytest.mark.parametrize("name", ["CARAFE", "DLU"])
def test_starts_as_the_mean_of_a_window(name):
    x = torch.randn(1, 8, 9, 9)
    mean = torch.nn.functional.avg_pool2d(x, 5, stride=1)  # of the windows inside the map
    y = build_upsampler(name, 8)(x)[:, :, 4:-4, 4:-4]
    torch.testing.assert_close(
        y, mean.repeat_interleave(2, 2).repeat_interleave(2, 3), atol=0.02, rtol=0
    )


def test_published_parameters():
    """74k at 256 channels (Wang et al., ICCV 2019): the compressor, 256 * 64 + 64, and the encoder,
    9 * 64 * 100 + 100. Names are those of open-mmlab/mmcv's CARAFEPack."""
    state = build_upsampler("CARAFE", 256).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "channel_compressor.weight": (64, 256, 1, 1),
        "channel_compressor.bias": (64,),
        "content_encoder.weight": (100, 64, 3, 3),
        "content_encoder.bias": (100,),
    }
    assert sum(value.numel() for value in state.values()) == 74_148


def test_initial_values():
    module = build_upsampler("CARAFE", 64)
    bound = (6 / (64 + 64)) ** 0.5  # Xavier uniform
    assert 0.95 * bound < module.channel_compressor.weight.abs().max() <= bound
    assert module.content_encoder.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert not module.channel_compressor.bias.any() and not module.content_encoder.bias.any()


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
        build_upsampler("CARAFE", 8, **options)
