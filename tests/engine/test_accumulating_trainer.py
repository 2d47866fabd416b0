import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils.events import EventStorage
from lda_aqu.engine.accumulating_trainer import AccumulatingTrainer
from torch import Tensor, nn


class Regression(nn.Module):
    """Two losses of a batch, a list of numbers; what is multiplied is recorded."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)
        self.gain = gain
        self.linear.register_forward_hook(lambda _module, _inputs, output: self.record(output))

    def record(self, output: Tensor) -> None:
        self.dtype = output.dtype

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        output = self.linear(torch.stack(batch)).float()
        losses = {"square": (output - 1).square().mean(), "size": output.abs().mean()}
        return {name: self.gain * loss for name, loss in losses.items()}


def samples(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn(count, 4, generator=generator))


def batches(data: list[Tensor], size: int) -> list[list[Tensor]]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def train(trainer: SimpleTrainer, steps: int) -> dict[str, Tensor]:
    """The weights after some steps; the storage of the last is ``trainer.storage``."""
    with EventStorage() as trainer.storage:
        for trainer.iter in range(steps):
            trainer.run_step()
            trainer.storage.step()
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def trainer_of(size: int, clip: float = 0.0, gain: float = 1.0, **options) -> AccumulatingTrainer:
    """Learns from 24 samples, ``size`` at a time."""
    model = Regression(gain)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    clipping = {"ENABLED": clip > 0, "CLIP_TYPE": "norm", "CLIP_VALUE": clip, "NORM_TYPE": 2.0}
    cfg = CfgNode({"SOLVER": {"CLIP_GRADIENTS": clipping}})
    optimizer = maybe_add_gradient_clipping(cfg, optimizer)
    return AccumulatingTrainer(model, batches(samples(24), size), optimizer, **options)


def test_without_options_it_is_detectron2s_trainer():
    ours = trainer_of(4)
    weights = train(ours, 6)
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    theirs = SimpleTrainer(model, batches(samples(24), 4), optimizer)
    torch.testing.assert_close(weights, train(theirs, 6), rtol=0, atol=0)
    for name in ("total_loss", "square", "size"):
        assert ours.storage.history(name).latest() == theirs.storage.history(name).latest()


@pytest.mark.parametrize("steps", [2, 4])
def test_accumulated_batches_are_one_batch(steps):
    whole, parts = trainer_of(4), trainer_of(4 // steps, accumulation_steps=steps)
    torch.testing.assert_close(train(parts, 6), train(whole, 6))
    for name in ("total_loss", "square", "size"):
        logged = [trainer.storage.history(name).values() for trainer in (parts, whole)]
        assert logged[0] == [(pytest.approx(value), i) for value, i in logged[1]]


def test_bfloat16_is_computed_and_not_scaled():
    trainer = trainer_of(4, amp_dtype=torch.bfloat16)
    weights = train(trainer, 6)
    assert trainer.model.dtype == torch.bfloat16
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert not trainer.grad_scaler.is_enabled()
    torch.testing.assert_close(weights, train(trainer_of(4), 6), rtol=0.05, atol=0.01)


@pytest.mark.parametrize("steps", [1, 2])
def test_gradients_in_float16_are_unscaled_before_they_are_clipped(steps):
    """Clipped while scaled by 65536 they would all have the norm of the threshold."""
    options = {"gain": 0.1, "clip": 0.05, "accumulation_steps": steps}
    trainer = trainer_of(4 // steps, amp_dtype=torch.float16, **options)
    weights = train(trainer, 6)
    assert trainer.model.dtype == torch.float16 and trainer.grad_scaler.get_scale() >= 65536
    expected = train(trainer_of(4 // steps, **options), 6)
    torch.testing.assert_close(weights, expected, rtol=0.01, atol=0.002)
    unclipped = train(trainer_of(4 // steps, **{**options, "clip": 0}), 6)
    assert (expected["linear.weight"] - unclipped["linear.weight"]).abs().max() > 0.01


def test_a_step_that_overflows_is_left_out_and_the_scale_is_halved():
    trainer = trainer_of(4, gain=1e4, amp_dtype=torch.float16)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    torch.testing.assert_close(train(trainer, 1), before, rtol=0, atol=0)
    assert trainer.grad_scaler.get_scale() == 32768


def test_the_scale_is_in_the_checkpoint_and_may_be_missing_there():
    trainer = trainer_of(4, gain=1e4, amp_dtype=torch.float16)
    train(trainer, 1)
    resumed = trainer_of(4, amp_dtype=torch.float16)
    resumed.load_state_dict(trainer.state_dict())
    assert resumed.grad_scaler.get_scale() == 32768
    resumed.load_state_dict(trainer_of(4).state_dict())
    assert resumed.grad_scaler.get_scale() == 32768


def test_a_loss_that_is_no_number_ends_the_step_at_its_batch():
    """Whose images are then named: the batches that would follow are not drawn."""
    trainer = trainer_of(2, accumulation_steps=3)
    data = batches(samples(6), 2)
    data[1][0][0] = torch.nan
    trainer._data_loader_iter_obj = drawn = iter(data)
    with pytest.raises(FloatingPointError, match="square is nan"):
        train(trainer, 1)
    assert len(list(drawn)) == 1
