import json
from types import SimpleNamespace

import lda_aqu.modeling  # noqa: F401  (registers the builders)
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils.env import seed_all_rng
from lda_aqu.engine import Trainer, load_config
from lda_aqu.engine.trainer import BestCheckpointer, set_aside_metrics, truncate_metrics
from PIL import Image


def records(path) -> list[int]:
    return [json.loads(line)["iteration"] for line in path.read_text().splitlines()]


def write(path, iterations, tail: str = "") -> None:
    lines = (
        json.dumps({"iteration": i, "segm/AP": float(-i % 70), "total_loss": 1.0}) + "\n"
        for i in iterations
    )
    path.write_text("".join(lines) + tail)


def test_truncated_metrics_end_before_the_resumed_iteration(tmp_path):
    path = tmp_path / "metrics.json"
    write(path, [19, 39, 59, 79], tail='{"iteration": 99, "lo')
    with path.open("a") as writer:
        truncate_metrics(path, 60, 200)
        writer.write('{"iteration": 60}\n')
    assert records(path) == [19, 39, 59, 60]


def test_an_unfinished_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.json"
    write(path, [19, 39], tail='{"iteration": 59, "lo')
    truncate_metrics(path, 100, 200)
    assert records(path) == [19, 39]


def test_what_a_run_that_resumes_between_two_records_writes_again_is_dropped(tmp_path):
    """A run that ended on SIGTERM after iteration 49 has written what was there."""
    path = tmp_path / "metrics.json"
    write(path, [19, 39, 49])
    truncate_metrics(path, 50, 200)
    assert records(path) == [19, 39]


def test_only_an_evaluation_is_repeated_where_nothing_else_is_left_to_do(tmp_path):
    path = tmp_path / "metrics.json"
    write(path, [19, 39, 49])
    with path.open("a") as file:
        file.write('{"iteration": 50, "segm/AP": 4.0}\n')  # which is evaluated again
    truncate_metrics(path, 50, 50)
    assert records(path) == [19, 39, 49]


def test_the_last_evaluation_of_a_run_that_is_prolonged_is_kept(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 89, "total_loss": 1.0}\n{"iteration": 90, "segm/AP": 4.0}\n')
    truncate_metrics(path, 90, 200)
    assert records(path) == [89, 90]


def test_no_metrics_to_truncate(tmp_path):
    truncate_metrics(tmp_path / "metrics.json", 10, 20)
    assert not list(tmp_path.iterdir())


def test_metrics_of_an_earlier_run_are_kept_apart(tmp_path):
    write(tmp_path / "metrics.json", [19])
    set_aside_metrics(str(tmp_path))
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("metrics-") and records(kept) == [19]


def test_best_value_is_known_after_a_resume(tmp_path):
    write(tmp_path / "metrics.json", [19, 39, 69, 99])
    hook = BestCheckpointer(20, checkpointer=None, val_metric="segm/AP")
    hook.trainer = SimpleNamespace(start_iter=100, cfg=SimpleNamespace(OUTPUT_DIR=str(tmp_path)))
    hook.before_train()
    assert (hook.best_metric, hook.best_iter) == (51.0, 19)


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
    compiled = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **options: compiled.append(module)
    )
    cfg = load_config(str(tiny_config), [])
    plain = Trainer.build_model(cfg)
    assert compiled == []
    cfg.MODEL.BACKBONE.COMPILE = True
    model = Trainer.build_model(cfg)
    assert compiled == [model.backbone]
    assert model.state_dict().keys() == plain.state_dict().keys()


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
