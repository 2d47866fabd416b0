"""Runs that are interrupted, and resumed: in the end all is as if they had not been."""

import random
import re
import time
from types import SimpleNamespace

import pytest
import runs
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from lda_aqu.engine import load_config
from lda_aqu.engine.exact_resume import ExactResume

# The images are flipped and scaled at random.
OPTS = (
    *("SEED", 3, "SOLVER.CHECKPOINT_PERIOD", 5, "TEST.EVAL_PERIOD", 0, "DATASETS.TEST", "()"),
    *("INPUT.MIN_SIZE_TRAIN", "(48, 64)", "DATALOADER.NUM_WORKERS", 1),
)


RETINANET = (
    *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.MASK_ON", False),
    *("MODEL.BACKBONE.NAME", "build_retinanet_resnet_lda_aqu_fpn_backbone"),
    *("MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']"),
    *("MODEL.RETINANET.NUM_CLASSES", 2, "MODEL.RETINANET.NUM_CONVS", 1),
)


@pytest.mark.parametrize(
    "iterations, more",
    [
        (22, ()),
        # The scale of the losses is part of the state, and so is what RetinaNet divides them by. An
        # iteration draws two batches.
        (10, ("SOLVER.AMP.ENABLED", True, "SOLVER.ACCUMULATION_STEPS", 2, *RETINANET)),
    ],
    ids=["plain", "RetinaNet, accumulated in float16"],
)
def test_killed_and_resumed(tiny_config, tmp_path, iterations, more):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    opts = (*OPTS, "SOLVER.MAX_ITER", iterations, *more)
    assert runs.finish(tiny_config, *opts, "OUTPUT_DIR", whole) == 0, runs.log(tiny_config)
    opts = (*opts, "OUTPUT_DIR", resumed)
    process = runs.start(tiny_config, *opts)
    runs.wait_for((resumed / "last_checkpoint").exists, process)
    process.kill()
    process.join()
    assert not (resumed / "model_final.pth").exists()
    assert runs.finish(tiny_config, *opts, resume=True) == 0, runs.log(tiny_config)
    assert re.search(r"Resuming at iteration [123]?[05]$", runs.log(tiny_config), re.MULTILINE)
    runs.assert_same(resumed, whole)


def test_each_process_goes_on_with_what_it_divided_losses_by(monkeypatch):
    hook = ExactResume(load_config("", ["MODEL.DEVICE", "cpu"]))
    model = SimpleNamespace(loss_normalizer=90.0)
    loader, storage = SimpleNamespace(batches_drawn=1), EventStorage(0)
    hook.trainer = SimpleNamespace(model=model, data_loader=loader, storage=storage, iter=0)
    monkeypatch.setattr(comm, "all_gather", lambda value: [value, 70.0])
    hook.after_step()
    state = hook.state_dict()
    for rank, normalizer in enumerate((90.0, 70.0, 90.0)):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        hook.load_state_dict(state)
        assert model.loss_normalizer == normalizer


def test_sigterm_saves_and_another_number_of_workers_goes_on(tiny_config, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    opts = (*OPTS, "SOLVER.MAX_ITER", 22)
    assert runs.finish(tiny_config, *opts, "OUTPUT_DIR", whole) == 0, runs.log(tiny_config)
    opts = (*opts, "OUTPUT_DIR", resumed)
    process = runs.start(tiny_config, *opts)
    runs.wait_for((resumed / "last_checkpoint").exists, process)
    process.terminate()
    assert runs.wait(process) == 143
    runs.assert_saved_by_sigterm(tiny_config, resumed)
    opts = (*opts, "DATALOADER.NUM_WORKERS", 0)
    assert runs.finish(tiny_config, *opts, resume=True) == 0, runs.log(tiny_config)
    runs.assert_same(resumed, whole)


@pytest.mark.slow
def test_many_random_kills(tiny_config, tmp_path):
    """At moments of a run drawn at random: while it starts, trains, evaluates or saves.

    Evaluations fall between two records of the metrics.
    """
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    opts = (*OPTS, "SOLVER.MAX_ITER", 150, "DATASETS.TEST", "('tiny',)", "TEST.EVAL_PERIOD", 35)
    begin = time.monotonic()
    assert runs.finish(tiny_config, *opts, "OUTPUT_DIR", whole) == 0, runs.log(tiny_config)
    duration = time.monotonic() - begin
    opts = (*opts, "OUTPUT_DIR", resumed)
    moments = random.Random(0)
    kills, resumptions = 0, 0
    while not (resumed / "model_final.pth").exists():
        resume = (resumed / "last_checkpoint").exists()
        resumptions += resume
        process = runs.start(tiny_config, *opts, resume=True)
        process.join(moments.uniform(0, duration / 6))
        kills += process.is_alive()
        process.kill()
        process.join()
    print(f"{kills} kills, {resumptions} runs resumed from a checkpoint")
    assert runs.finish(tiny_config, *opts, resume=True) == 0, runs.log(tiny_config)
    assert kills >= 10
    runs.assert_same(resumed, whole)
