import re
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import lda_aqu.modeling  # noqa: F401  (registers the builders)
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultTrainer, TrainerBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from lda_aqu.engine import Trainer, load_config
from lda_aqu.engine.trainer import BestCheckpointer
from lda_aqu.errors import InputError
from PIL import Image


def best_checkpointer(output: Path, **state) -> tuple[BestCheckpointer, TrainerBase]:
    """With the trainer that it is a hook of, which is resumed from a state where one is given."""
    trainer = TrainerBase()
    hook = BestCheckpointer(10, checkpointer=Mock(), val_metric="segm/AP")
    trainer.register_hooks([hook])
    trainer.cfg = SimpleNamespace(OUTPUT_DIR=str(output))
    trainer.max_iter, trainer.start_iter = 200, 0
    if state:
        trainer.load_state_dict(state)
        trainer.start_iter = trainer.iter + 1
    hook.before_train()
    return hook, trainer


def evaluate(trainer: TrainerBase, iteration: int, value: float) -> None:
    trainer.iter = iteration
    with EventStorage(iteration) as trainer.storage:
        trainer.storage.put_scalar("segm/AP", value)
        trainer.after_step()


def test_a_worse_model_than_before_a_resume_is_not_the_best(tmp_path):
    """Nor than one that was evaluated between two records of the metrics."""
    _, trainer = best_checkpointer(tmp_path)
    evaluate(trainer, 29, 60.0)
    evaluate(trainer, 39, 50.0)
    (tmp_path / "metrics.json").write_text('{"iteration": 39, "segm/AP": 50.0}\n')
    evaluate(trainer, 49, 55.0)
    resumed, trainer = best_checkpointer(tmp_path, **trainer.state_dict())
    assert (resumed.best_metric, resumed.best_iter) == (60.0, 29)
    evaluate(trainer, 59, 59.0)
    assert not resumed._checkpointer.save.called
    evaluate(trainer, 69, 61.0)
    assert resumed._checkpointer.save.call_count == 1


def test_the_best_value_of_the_evaluation_after_a_run_that_is_prolonged(tmp_path):
    lines = (f'{{"iteration": {i}, "segm/AP": {value}.0}}\n' for i, value in ((39, 50), (100, 60)))
    (tmp_path / "metrics.json").write_text("".join(lines))
    resumed, _ = best_checkpointer(tmp_path, iteration=99)
    assert (resumed.best_metric, resumed.best_iter) == (60.0, 100)


@pytest.fixture
def tiny_sem_seg(tmp_path):
    """The name of a dataset of 3 images of 96 x 64 with 4 classes."""
    for index in range(3):
        labels = np.arange(64 * 96, dtype=np.uint8).reshape(64, 96) % 4
        Image.fromarray(np.stack([labels] * 3, axis=-1)).save(tmp_path / f"{index}.png")
        Image.fromarray(labels).save(tmp_path / f"{index}_labels.png")
    name = f"tiny_sem_seg_{tmp_path.name}"
    DatasetCatalog.register(
        name,
        lambda: [
            {
                "file_name": str(tmp_path / f"{index}.png"),
                "sem_seg_file_name": str(tmp_path / f"{index}_labels.png"),
            }
            for index in range(3)
        ],
    )
    yield name
    DatasetCatalog.remove(name)


def test_semantic_models_are_trained_on_crops_of_resized_images(tiny_sem_seg):
    cfg = load_config("", ["MODEL.META_ARCHITECTURE", "SemanticSegmentor"])
    cfg.merge_from_list(["DATASETS.TRAIN", (tiny_sem_seg,), "DATALOADER.NUM_WORKERS", 0])
    cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (80,), "INPUT.CROP.ENABLED", True])
    cfg.merge_from_list(["INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [72, 56]])
    cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 2])
    batch = next(iter(Trainer.build_train_loader(cfg)))
    assert [image["image"].shape for image in batch] == [(3, 72, 56)] * 2
    assert [image["sem_seg"].shape for image in batch] == [(72, 56)] * 2


def test_parts_of_a_batch_have_their_share_of_its_images(tiny_sem_seg):
    cfg = load_config("", ["MODEL.META_ARCHITECTURE", "SemanticSegmentor"])
    cfg.merge_from_list(["DATASETS.TRAIN", (tiny_sem_seg,), "DATALOADER.NUM_WORKERS", 0])
    cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 6, "SOLVER.ACCUMULATION_STEPS", 3])
    assert len(next(iter(Trainer.build_train_loader(cfg)))) == 2


def test_a_compiled_backbone_keeps_the_names_of_its_parameters(tiny_config, monkeypatch):
    compiled, compile_module = [], torch.nn.Module.compile

    def compile_eagerly(module: torch.nn.Module, **options: object) -> None:
        compiled.append(module)
        compile_module(module, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    cfg = load_config(str(tiny_config), [])
    plain = Trainer.build_model(cfg)
    assert compiled == []
    cfg.MODEL.BACKBONE.COMPILE = True
    model = Trainer.build_model(cfg)
    assert compiled == [model.backbone]
    assert model.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().backbone(images), plain.eval().backbone(images))


@pytest.mark.slow
def test_a_compiled_backbone_trains_as_it_does_uncompiled(tiny_config):
    weights = []
    for compiled in ("False", "True"):
        opts = ["MODEL.BACKBONE.COMPILE", compiled, "SEED", "0", "DATASETS.TEST", "()"]
        cfg = load_config(str(tiny_config), [*opts, "INPUT.RANDOM_FLIP", "none"])
        seed_all_rng(cfg.SEED)
        trainer = Trainer(cfg)
        trainer.train()
        weights.append(trainer.model.state_dict())
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-4)


def test_recipe_is_scaled_to_the_number_of_processes(tiny_config):
    """By Detectron2, from the number that SOLVER.REFERENCE_WORLD_SIZE says it was made for."""
    opts = ["SOLVER.REFERENCE_WORLD_SIZE", "2", "SOLVER.IMS_PER_BATCH", "4"]
    trainer = Trainer(load_config(str(tiny_config), opts))
    assert trainer.max_iter == 8
    assert trainer.optimizer.param_groups[0]["initial_lr"] == pytest.approx(0.005)
    assert len(next(iter(trainer.data_loader))) == 2


def test_a_trainer_with_a_loader_that_does_not_resume_is_refused(tiny_config):
    class WithAnotherLoader(Trainer):
        build_train_loader = DefaultTrainer.build_train_loader

    message = r"build_train_loader must return what lda_aqu\.data\.loaders\.build_train_loader\("
    with pytest.raises(TypeError, match=message):
        WithAnotherLoader(load_config(str(tiny_config), []))


@pytest.mark.parametrize("schedule", ["WarmupMultiStepLR", "WarmupPolyLR"])
def test_values_given_on_resume_hold_and_are_named(tiny_config, tmp_path, schedule, caplog):
    def trainer_of(*opts: str) -> Trainer:
        opts = ("SOLVER.LR_SCHEDULER_NAME", schedule, "DATASETS.TEST", "()", *opts)
        return Trainer(load_config(str(tiny_config), list(opts)))

    trainer_of().train()
    changed = (
        *("SOLVER.BASE_LR", "0.001", "SOLVER.MOMENTUM", "0.5", "SOLVER.WEIGHT_DECAY", "0.3"),
        *("SOLVER.MAX_ITER", "6", "SOLVER.POLY_LR_POWER", "2.0", "SEED", "4"),
    )
    resumed = trainer_of(*changed)
    resumed.resume_or_load()
    assert resumed.start_iter == 4
    for key in ("BASE_LR", "MOMENTUM", "WEIGHT_DECAY", "MAX_ITER"):
        assert f"SOLVER.{key} was " in caplog.text
    assert re.search("SEED was -?[0-9]+ until now: from iteration 4 on it is 4", caplog.text)
    # Those of a run that had them from the start.
    expected = trainer_of(*changed)
    for _ in range(4):
        expected.optimizer.step()
        expected.scheduler.step()
    for group, other in zip(
        resumed.optimizer.param_groups, expected.optimizer.param_groups, strict=True
    ):
        assert {**group, "params": None} == {**other, "params": None}
    caplog.clear()
    trainer_of().resume_or_load()
    assert " was " not in caplog.text


def test_machines_that_do_not_share_the_folder_of_the_checkpoints_do_not_resume(
    tiny_config, monkeypatch
):
    trainer = Trainer(load_config(str(tiny_config), []))
    monkeypatch.setattr(comm, "all_gather", lambda value: [20, value])
    with pytest.raises(InputError, match=r"iterations 20, 0: OUTPUT_DIR .* all machines share"):
        trainer.resume_or_load()


def test_adamw_trains_and_resumes_with_the_groups_of_sgd(tiny_config):
    opts = ["SOLVER.OPTIMIZER", "ADAMW", "SOLVER.BASE_LR", "0.0001", "DATASETS.TEST", "()"]
    trainers = {}
    for name in ("SGD", "ADAMW"):
        cfg = load_config(str(tiny_config), [*opts, "SOLVER.OPTIMIZER", name])
        trainers[name] = Trainer(cfg)
    groups = {
        name: [(g["weight_decay"], len(g["params"])) for g in trainer.optimizer.param_groups]
        for name, trainer in trainers.items()
    }
    assert groups["SGD"] == groups["ADAMW"] and len(groups["SGD"]) > 1
    optimizer = trainers["ADAMW"].optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    trainers["ADAMW"].resume_or_load(resume=False)
    trainers["ADAMW"].train()
    assert all(optimizer.state[p]["step"] == 4 for g in optimizer.param_groups for p in g["params"])
    resumed = Trainer(load_config(str(tiny_config), [*opts, "SOLVER.MAX_ITER", "6"]))
    resumed.resume_or_load(resume=True)
    assert len(resumed.optimizer.state) == len(optimizer.state)
    with pytest.raises(InputError, match="SOLVER.OPTIMIZER SGD: the run that is resumed has ADAMW"):
        trainers["SGD"].resume_or_load(resume=True)
