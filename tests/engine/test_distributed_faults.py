"""Faults in one of two processes: both end, and what can go on does, as if it had been one."""

import shutil
from functools import partial

import runs

OPTS = "SEED", 3, "DATASETS.TEST", "()"
start, finish = (partial(f, processes=2) for f in (runs.start, runs.finish))


def test_sigterm_ends_both_processes_and_they_go_on(tiny_config, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    opts = *OPTS, "SOLVER.MAX_ITER", 22, "SOLVER.CHECKPOINT_PERIOD", 5
    assert finish(tiny_config, *opts, "OUTPUT_DIR", whole) == 0, runs.log(tiny_config)
    opts = *opts, "OUTPUT_DIR", resumed
    process = start(tiny_config, *opts)
    runs.wait_for((resumed / "last_checkpoint").exists, process)
    process.terminate()
    assert runs.wait(process) == 143
    runs.assert_saved_by_sigterm(tiny_config, resumed)
    assert finish(tiny_config, *opts, resume=True) == 0, runs.log(tiny_config)
    runs.assert_same(resumed, whole)


def test_an_image_that_one_process_cannot_read_ends_both(tiny_config, tiny_coco, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(tiny_coco / "images", images)
    damaged = sorted(images.iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:3000])
    config = tiny_config.read_text().replace(f'"{tiny_coco}/images"', f'"{images}"')
    tiny_config.write_text(config)
    assert finish(tiny_config, *OPTS, "SOLVER.MAX_ITER", 50) == 2
    runs.assert_one_line(tiny_config, str(damaged))


def test_losses_that_are_no_numbers_end_both_processes(tiny_config, tmp_path):
    opts = (
        *("SOLVER.MAX_ITER", 50, "SOLVER.BASE_LR", "1e8", "SOLVER.WARMUP_ITERS", 0),
        *("SOLVER.CLIP_GRADIENTS.ENABLED", False),
    )
    assert finish(tiny_config, *OPTS, *opts) == 2
    runs.assert_one_line(tiny_config, "iteration ", "SOLVER.BASE_LR")
    assert list((tmp_path / "output").glob("non_finite_loss_[01].json"))
