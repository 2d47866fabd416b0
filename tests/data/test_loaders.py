import itertools
import multiprocessing
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.datasets import register_coco_instances
from detectron2.data.samplers import TrainingSampler
from lda_aqu.data import loaders
from lda_aqu.data.images import ImageMapper
from lda_aqu.data.loaders import EvaluationLoader, NamingMapper, TrainLoader, build_train_loader
from lda_aqu.engine import load_config
from lda_aqu.errors import InputError
from PIL import Image

RECORDS = [
    {"file_name": f"{i}.png", "width": 3 + i % 3, "height": 4, "index": i} for i in range(11)
]


def augment(record: dict) -> dict:
    """With all three generators that a mapper may use."""
    numbers = random.random(), float(np.random.rand()), float(torch.rand(1))
    return {**record, "numbers": numbers}


def fail(*indices: int):
    def mapper(record: dict) -> dict:
        if record["index"] in indices:
            raise OSError("image file is truncated")
        return augment(record)

    return mapper


def make(mapper=augment, first: int = 0, **options) -> TrainLoader:
    loader = TrainLoader(
        RECORDS,
        NamingMapper(mapper, "pets"),
        TrainingSampler(len(RECORDS), seed=5),
        groups=[record["width"] > record["height"] for record in RECORDS],
        batch_size=2,
        **{"seed": 5} | options,
    )
    loader.batches_drawn = first
    return loader


def draw(loader: TrainLoader, count: int) -> list[list[dict]]:
    batches = list(itertools.islice(loader, count))
    loader.close()
    return batches


@pytest.mark.parametrize("workers", [0, 2])
def test_any_start_and_any_number_of_workers_give_the_same_batches(workers):
    expected = draw(make(), 30)
    loader = make(first=13, num_workers=workers)
    assert draw(loader, 17) == expected[13:]
    assert loader.batches_drawn == 30
    assert loader.file_names == [image["file_name"] for image in expected[-1]]
    assert draw(make(seed=6), 1) != expected[:1]


def test_batches_are_those_of_detectron2():
    stream = (RECORDS[index] for index in TrainingSampler(len(RECORDS), seed=5))
    expected = itertools.islice(AspectRatioGroupedDataset(stream, 2), 40)
    batches = draw(make(), 40)
    indices = [[image["index"] for image in batch] for batch in batches]
    assert indices == [[image["index"] for image in batch] for batch in expected]


def test_an_image_is_augmented_anew_each_time():
    numbers = [image["numbers"] for batch in draw(make(), 40) for image in batch]
    assert len(set(numbers)) == len(numbers)


def test_the_random_numbers_of_the_model_are_left_alone():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    draw(make(), 5)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == states


def test_two_processes_draw_what_one_does(monkeypatch):
    expected = draw(make(), 1)[0]
    monkeypatch.setattr(loaders.comm, "get_world_size", lambda: 2)
    drawn = []
    for rank in range(2):
        monkeypatch.setattr(loaders.comm, "get_rank", lambda rank=rank: rank)
        drawn += next(iter(make()))
    both = {(image["index"], image["numbers"]) for image in drawn}
    assert {(image["index"], image["numbers"]) for image in expected} <= both


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(workers):
    message = r"^dataset pets: image file '4\.png' .* cannot be read: OSError: image file is trunc"
    with pytest.raises(InputError, match=message):
        draw(make(fail(4), num_workers=workers), 20)
    assert not multiprocessing.active_children()


def test_unreadable_images_are_skipped_and_counted(caplog):
    loader = make(fail(4, 7), skip_unreadable=True)
    batches = draw(loader, 22)
    indices = [image["index"] for batch in batches for image in batch]
    assert len(indices) == 44 and not {4, 7} & set(indices)
    assert caplog.messages[0].startswith("Skipped, 1 so far: dataset pets: image file '")
    assert len(caplog.messages) == loader.skipped >= 4
    assert f"Skipped, {loader.skipped} so far" in caplog.messages[-1]
    assert draw(make(fail(4, 7), first=9, skip_unreadable=True), 13) == batches[9:]


def test_a_dataset_without_a_readable_image_ends_the_run():
    with pytest.raises(InputError, match="cannot be read"):
        draw(make(fail(*range(11)), skip_unreadable=True), 1)


@pytest.fixture
def damaged(tmp_path):
    """A dataset of four images of which one is cut short."""
    records = []
    for index in range(4):
        path = tmp_path / f"{index}.png"
        Image.effect_noise((40, 30), 50).convert("RGB").save(path)
        records.append({"file_name": str(path), "width": 40, "height": 30, "image_id": index})
    path.write_bytes(path.read_bytes()[:500])
    DatasetCatalog.register(tmp_path.name, lambda: records)
    yield tmp_path.name
    DatasetCatalog.remove(tmp_path.name)


def config(dataset: str, *opts: object):
    opts = ["DATASETS.TRAIN", f"('{dataset}',)", "DATALOADER.NUM_WORKERS", "1", *map(str, opts)]
    return load_config("", [*opts, "SEED", "1"])


def test_a_truncated_file_from_the_config(damaged):
    cfg = config(damaged)
    mapper = ImageMapper(cfg, is_train=True)
    with pytest.raises(InputError, match=rf"dataset {damaged}: image file '.*/3\.png'"):
        draw(build_train_loader(cfg, mapper, 2), 4)
    cfg = config(damaged, "DATALOADER.SKIP_UNREADABLE", True)
    loader = build_train_loader(cfg, mapper, 2)
    assert len(draw(loader, 4)) == 4 and loader.skipped > 0
    with pytest.raises(InputError, match=rf"dataset {damaged}: image file '.*/3\.png'"):
        list(EvaluationLoader(cfg, damaged))


def test_an_image_without_a_header_is_skipped_where_no_annotations_say_its_size(damaged):
    for record in DatasetCatalog.get(damaged):
        del record["width"], record["height"]
    Path(record["file_name"]).write_bytes(b"")
    cfg = config(damaged, "DATALOADER.SKIP_UNREADABLE", True)
    loader = build_train_loader(cfg, ImageMapper(cfg, is_train=True), 2)
    assert len(draw(loader, 4)) == 4 and loader.skipped > 0


@pytest.mark.parametrize("training", [True, False])
def test_workers_outlive_the_sigterm_to_all_processes_of_a_job(tiny_config, training):
    """So that an iteration, or an evaluation, ends; but not that of their own."""
    cfg = load_config(str(tiny_config), ["DATALOADER.NUM_WORKERS", "1"])
    mapper = ImageMapper(cfg, is_train=True)
    loader = build_train_loader(cfg, mapper, 1) if training else EvaluationLoader(cfg, "tiny")
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    assert len(list(itertools.islice(batches, 5))) == 5
    assert worker.is_alive()
    worker.terminate()
    worker.join(9)
    assert not worker.is_alive()


def test_annotations_that_are_gone_before_an_evaluation_are_named(tmp_path):
    register_coco_instances(tmp_path.name, {}, str(tmp_path / "gone.json"), str(tmp_path))
    with pytest.raises(InputError, match=r"dataset test_.*gone\.json' cannot be read"):
        EvaluationLoader(load_config("", []), tmp_path.name)


def test_a_seed_gives_the_same_batches(tiny_config):
    def first_batch(seed: int) -> list[torch.Tensor]:
        cfg = load_config(str(tiny_config), ["SEED", str(seed)])
        loader = build_train_loader(cfg, ImageMapper(cfg, is_train=True), 6)
        return [image["image"] for image in draw(loader, 1)[0]]

    assert all(map(torch.equal, first_batch(1), first_batch(1)))
    assert not all(map(torch.equal, first_batch(1), first_batch(2)))
