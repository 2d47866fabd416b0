import pytest
import torch
from lda_aqu.errors import InputError
from lda_aqu.evaluation import relative_feature_change
from torch import nn


class Model(nn.Module):
    """Two levels: the image by a factor, and the image shifted, or half of it."""

    def __init__(self, factor: float = 1.0, shift: float = 0.0, **changed: object) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.forward = lambda x: {"p2": factor * x, "p3": x[..., ::2] + shift} | changed

    def forward(self, batch):
        return self.backbone(torch.stack([image["image"] for image in batch]))


BATCHES = [[{"image": torch.full((3, 2, 4), value)}] for value in (3.0, 4.0)]


def test_changes_of_all_images_are_taken_together():
    change = relative_feature_change(Model(1.25, 1.0), Model(), BATCHES)
    assert change["p2"] == pytest.approx(0.25)
    assert change["p3"] == pytest.approx((2 / 25) ** 0.5)  # of 1, 1 beside 3, 4


def test_no_change():
    assert relative_feature_change(Model(), Model(), BATCHES) == {"p2": 0, "p3": 0}


def test_only_levels_that_both_have():
    changed = relative_feature_change(Model(p6=torch.zeros(1)), Model(), BATCHES)
    assert changed.keys() == {"p2", "p3"}


def test_shapes_that_differ():
    with pytest.raises(InputError, match=r"'p3' are of different shapes: \(1,\) and \(1, 3, 2, 2"):
        relative_feature_change(Model(p3=torch.zeros(1)), Model(), BATCHES)
