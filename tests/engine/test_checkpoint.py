import pytest
import torch
from lda_aqu.engine import Checkpointer
from lda_aqu.errors import InputError
from lda_aqu.upsamplers import build_upsampler
from torch import nn


class Model(nn.Module):
    """Parameters where a detector has them."""

    def __init__(self, channels: int = 8, upsampler: str = "LDAAQU") -> None:
        super().__init__()
        self.backbone = nn.ModuleDict(
            {
                "bottom_up": nn.Conv2d(3, channels, 1),
                "fpn_upsample2": build_upsampler(upsampler, channels),
            }
        )
        self.head = nn.Conv2d(channels, 2, 1)


@pytest.fixture
def saved(tmp_path):
    def save(model: nn.Module, drop: str = "no such key") -> str:
        state = {k: v for k, v in model.state_dict().items() if not k.startswith(drop)}
        torch.save({"model": state}, tmp_path / "model.pth")
        return str(tmp_path / "model.pth")

    return save


@pytest.mark.parametrize("complete", [True, False])
def test_round_trip(saved, complete):
    source, target = Model(), Model()
    Checkpointer(target, complete=complete).load(saved(source))
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)


@pytest.mark.parametrize("complete", [True, False])
def test_upsamplers_may_be_missing(saved, complete):
    Checkpointer(Model(), complete=complete).load(saved(Model(upsampler="Nearest")))


def test_heads_may_be_missing_where_a_training_starts(saved):
    path = saved(Model(), drop="head")
    Checkpointer(Model()).load(path)
    with pytest.raises(
        InputError, match=r"2 of 4 parameters.*first is head\.bias \(it is not there"
    ):
        Checkpointer(Model(), complete=True).load(path)


@pytest.mark.parametrize("complete", [True, False])
def test_another_architecture(saved, complete):
    message = r"another architecture.*first is backbone.bottom_up.bias .*\(16,\).*\(8,\)"
    with pytest.raises(InputError, match=message):
        Checkpointer(Model(), complete=complete).load(saved(Model(channels=16)))


def test_another_architecture_of_a_backbone_without_a_pyramid(saved):
    def plain(channels: int) -> nn.Module:
        return nn.ModuleDict({"backbone": nn.Conv2d(3, channels, 1), "head": nn.Linear(2, 2)})

    with pytest.raises(InputError, match=r"another architecture.*first is backbone\.bias"):
        Checkpointer(plain(8)).load(saved(plain(16)))
    Checkpointer(plain(8)).load(saved(plain(8), drop="head"))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 truncated"])
@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_files_that_are_no_checkpoints(tmp_path, content, suffix):
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"weights '.*bad\.{suffix}' cannot be loaded"):
        Checkpointer(Model()).load(str(path))
