import math

import pytest
import torch
from lda_aqu import LDAAQU, build_upsampler
from lda_aqu.errors import InputError
from lda_aqu.evaluation import sampling_statistics
from torch import nn


class Model(nn.Module):
    """An upsampler of the image."""

    def __init__(self, upsampler: nn.Module) -> None:
        super().__init__()
        self.up = upsampler

    def forward(self, batch):
        self.up(torch.stack([image["image"] for image in batch]))


def looking_right(pixels: float) -> LDAAQU:
    """One whose offsets all lead that many output pixels to the right, with equal weights."""
    up = LDAAQU(8, reduction=2, num_heads=4)
    for parameter in up.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        up.conv_offset[3].bias[1::2] = math.atanh(pixels / 11)
    return up


# Two batches, 4 x 5 to 8 x 10: a step of the output is 3/7 of the input's rows, 4/9 of its columns.
BATCHES = [[{"image": torch.rand(8, 4, 5)}] * n for n in (1, 2)]


@pytest.mark.parametrize("right", [0, 2.25])
def test_of_equal_weights(right):
    points = [(a, b + right) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    lost = []
    for y in range(8):
        for x in range(10):
            for a, b in points:
                row, column = (y + a) * 3 / 7, (x + b) * 4 / 9
                inside = max(0, min(1, row + 1, 4 - row)) * max(0, min(1, column + 1, 5 - column))
                lost.append(1 - inside)
    (values,) = sampling_statistics(Model(looking_right(right)), BATCHES).values()
    assert values.offset == pytest.approx(right)
    assert values.distance == pytest.approx(sum(math.hypot(*p) for p in points) / 9)
    assert values.outside_window == pytest.approx(sum(b > 1.5 for _, b in points) / 9)
    assert values.off_map == pytest.approx(sum(lost) / len(lost))
    assert values.points == pytest.approx(9)


def test_each_point_counts_as_it_is_weighed():
    torch.manual_seed(0)
    up = LDAAQU(8, reduction=2, num_heads=4)
    nn.init.normal_(up.relative_position_bias_table, std=20)
    nn.init.normal_(up.proj_q.weight, std=20)
    ((name, values),) = sampling_statistics(Model(up), BATCHES).items()
    assert name == "up"
    # Nearly all of the attention is on one of the nine, which lie in the window.
    assert 1 < values.points < 1.5
    assert values.offset == values.outside_window == 0
    with torch.no_grad():
        weights = up.sampling(torch.stack([i["image"] for b in BATCHES for i in b])).weights
    distances = torch.tensor([2**0.5, 1, 2**0.5, 1, 0, 1, 2**0.5, 1, 2**0.5])
    expected = (weights.mean((0, 1, 3, 4)) * distances).sum().item()
    assert values.distance == pytest.approx(expected)


def test_a_model_without_attention_is_an_input_error():
    with pytest.raises(InputError, match="no upsampler of local attention"):
        sampling_statistics(Model(build_upsampler("Bilinear", 8)), BATCHES)
