import numpy as np
import oracle
import pytest
import torch
from lda_aqu import build_upsampler
from randomized import assert_matches


def index_net(x: np.ndarray, guide: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    """IndexNet of one image, (C, H, W) and (G, Y, X), at test time, in loops."""
    height, width = guide.shape[1:]
    mean, variance, scale, shift = (
        state[f"index_block.1.{name}"][:, None, None]
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    hidden = oracle.halve(guide, state["index_block.0.weight"])
    hidden = ((hidden - mean) / np.sqrt(variance + 1e-5) * scale + shift).clip(0, 6)
    indices = oracle.sigmoid(oracle.convolve(hidden, state["index_block.3.weight"]))
    output = np.zeros((len(x), height, width))
    for i in range(height):
        for j in range(width):
            pixel = x[:, i * x.shape[1] // height, j * x.shape[2] // width]
            output[:, i, j] = pixel * indices[i % 2 * 2 + j % 2, i // 2, j // 2]
    return output


@pytest.mark.parametrize(
    "input_size, guide_size, guide_channels",
    [((3, 4), (6, 8), None), ((3, 4), (5, 7), 4), ((4, 3), (10, 7), None)],
)
def test_matches_the_loops(input_size, guide_size, guide_channels):
    torch.manual_seed(0)
    upsampler = build_upsampler("IndexNet", 5, guide_channels=guide_channels).double().eval()
    for tensor in upsampler.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 2).sub_(1 if tensor.dim() == 4 else 0)
    x = torch.randn(2, 5, *input_size).double()
    guide = torch.randn(2, upsampler.guide_channels, *guide_size).double()
    assert_matches(upsampler, index_net, x, guide)
