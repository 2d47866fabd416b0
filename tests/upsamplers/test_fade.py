import numpy as np
import oracle
import pytest
import torch
from randomized import assert_matches, randomized


def fade(x: np.ndarray, guide: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    """FADE or FADE-Lite of one image, (C, H, W) and (G, Y, X), in loops."""
    height, width = guide.shape[1:]
    encoder = state["content_encoder.weight"]
    depthwise = encoder.shape[1] == 1
    fine = oracle.convolve(guide, state["guide_compressor.weight"])
    fine = oracle.convolve(fine + state["guide_compressor.bias"][:, None, None], encoder, depthwise)
    coarse = oracle.convolve(x, state["input_compressor.weight"])
    coarse = oracle.convolve(coarse, encoder, depthwise)
    k = round(len(encoder) ** 0.5)
    pixels = oracle.windows(x, (height, width), k)
    entering = guide
    if "guide_projection.weight" in state:
        entering = oracle.convolve(guide, state["guide_projection.weight"])
        entering = entering + state["guide_projection.bias"][:, None, None]
    output = np.zeros((len(x), height, width))
    for i in range(height):
        for j in range(width):
            row, column = i * x.shape[1] // height, j * x.shape[2] // width
            logits = fine[:, i, j] + coarse[:, row, column] + 2 * state["content_encoder.bias"]
            output[:, i, j] = oracle.softmax(logits) @ pixels[:, :, i, j]
            if "gate.weight" in state:
                logit = state["gate.weight"][0, :, 0, 0] @ x[:, row, column] + state["gate.bias"]
                gate = oracle.sigmoid(logit)
                output[:, i, j] = gate * entering[:, i, j] + (1 - gate) * output[:, i, j]
    return output


@pytest.mark.parametrize(
    "name, options",
    [("FADE", {"compressed_channels": 2}), ("FADE", {}), ("FADELite", {})],
)
@pytest.mark.parametrize(
    "input_size, guide_size, others",
    [
        ((3, 4), (6, 8), {}),
        ((3, 4), (5, 8), {"gating": False}),
        ((4, 3), (10, 7), {"kernel_size": 3, "encoder_kernel_size": 5}),
        ((1, 2), (2, 4), {"encoder_kernel_size": 1, "guide_channels": 4}),
    ],
)
def test_matches_the_loops(name, options, input_size, guide_size, others):
    upsampler = randomized(name, 6, std=0.5, **options, **others).double()
    x = torch.randn(2, 6, *input_size).double()
    guide = torch.randn(2, upsampler.guide_channels, *guide_size).double()
    assert_matches(upsampler, fade, x, guide)
