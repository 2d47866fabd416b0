import pytest
import torch
from lda_aqu.errors import InputError
from lda_aqu.export.agreement import compare
from torch import Tensor


def detections() -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 10, 10]]),
        "scores": torch.tensor([0.9, 0.5, 0.5]),
        "classes": torch.tensor([0, 1, 2]),
        "masks": torch.full((3, 4, 4), 0.5),
    }


def test_detections_of_equal_scores_may_come_in_any_order():
    expected = detections()
    order = torch.tensor([0, 2, 1])
    actual = {name: tensor[order] for name, tensor in expected.items()}
    assert compare(expected, actual) == {"boxes": 0, "scores": 0, "masks": 0}


def test_the_largest_difference_is_named():
    expected, actual = detections(), detections()
    actual["boxes"][1, 2] += 0.3  # three times what is allowed
    actual["masks"][1, 0, 0] += 0.25  # 25 times
    with pytest.raises(InputError, match=r"masks differ from PyTorch's by 0\.25, and 0\.01"):
        compare(expected, actual)


@pytest.mark.parametrize("name, difference", [("boxes", 0.2), ("scores", 0.002), ("masks", 0.02)])
def test_each_output_is_compared(name, difference):
    expected, actual = detections(), detections()
    actual[name] += difference
    with pytest.raises(InputError, match=name):
        compare(expected, actual)
    actual[name] -= 0.9 * difference
    assert compare(expected, actual)[name] == pytest.approx(0.1 * difference, rel=0.01)


def test_nan_is_no_agreement():
    expected, actual = detections(), detections()
    actual["scores"][0] = torch.nan
    with pytest.raises(InputError, match="scores differ from PyTorch's by nan"):
        compare(expected, actual)


def test_other_detections_are_no_agreement():
    expected = detections()
    fewer = {name: tensor[1:] for name, tensor in expected.items()}
    with pytest.raises(InputError, match="there are 2 detections, and PyTorch finds 3"):
        compare(expected, fewer)
    with pytest.raises(InputError, match="there are 3 detections, and PyTorch finds 2"):
        compare(fewer, expected)
    with pytest.raises(InputError, match="other classes"):
        compare(expected, expected | {"classes": torch.tensor([0, 0, 2])})


def test_one_of_the_lowest_score_may_be_missing():
    """It is on the other side of the threshold for rounding."""
    expected = detections()
    expected["scores"][2] = 0.05001
    fewer = {name: tensor[:2] for name, tensor in expected.items()}
    for a, b in ((expected, fewer), (fewer, expected)):
        assert compare(a, b) == {"boxes": 0, "scores": 0, "masks": 0}


def test_the_only_one_may_not_be_missing():
    one = {name: tensor[:1] for name, tensor in detections().items()}
    none = {name: tensor[:0] for name, tensor in one.items()}
    with pytest.raises(InputError, match="there are 0 detections, and PyTorch finds 1"):
        compare(one, none)
    with pytest.raises(InputError, match="there are 1 detections, and PyTorch finds 0"):
        compare(none, one)


def test_no_detections_agree():
    none = {name: tensor[:0] for name, tensor in detections().items()}
    assert compare(none, none) == {"boxes": 0, "scores": 0, "masks": 0}


def test_logits_are_compared_relative_to_the_largest():
    expected = {"sem_seg": torch.tensor([[[20.0, -40.0]]])}
    assert compare(expected, {"sem_seg": expected["sem_seg"] + 0.02}) == {
        "sem_seg": pytest.approx(5e-4, rel=1e-3)
    }
    with pytest.raises(InputError, match="sem_seg differ"):
        compare(expected, {"sem_seg": expected["sem_seg"] + 0.08})
    with pytest.raises(InputError, match="sem_seg are"):
        compare(expected, {"sem_seg": expected["sem_seg"][..., :1]})
