#!/usr/bin/env python
"""Train or evaluate a model from a config.

train_net.py --config-file configs/... [--num-gpus N] [--resume] [--eval-only] KEY VALUE ...
"""

import contextlib
import logging
from argparse import Namespace
from typing import Any

import lda_aqu.modeling  # noqa: F401  (registers the builders)
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from lda_aqu.data import register_coco_format_datasets
from lda_aqu.engine import (
    Checkpointer,
    Trainer,
    check_datasets,
    check_model,
    check_processes,
    check_solver,
    check_upsamplers_are_used,
    check_weights,
    find_processes,
    launch,
    load_config,
)
from lda_aqu.engine.output_folder import begin_run, lock_output
from lda_aqu.errors import MISFITS, as_input_error, exit_on_input_error
from lda_aqu.files import make_folder
from lda_aqu.upsamplers.user_files import import_upsampler_files


def run(cfg: CfgNode, args: Namespace) -> dict[str, Any] | None:
    """Train or evaluate, in each process."""
    import_upsampler_files(cfg.MODEL.UPSAMPLER_FILES)
    register_coco_format_datasets(cfg.DATASETS.COCO_FORMAT)
    default_setup(cfg, args)
    # What this project logs goes into the files of default_setup, too.
    setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="lda_aqu", configure_stdout=False)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = Checkpointer(
            model, cfg.OUTPUT_DIR, complete=True, trusted=cfg.MODEL.TRUST_WEIGHTS
        )
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results |= Trainer.test_with_TTA(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    if comm.is_main_process():
        begin_run(cfg.OUTPUT_DIR, resume=args.resume)
    with as_input_error("the training cannot be built", *MISFITS):
        trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def check(cfg: CfgNode, args: Namespace) -> None:
    """Check, once a machine, all that the run needs, before any long work starts."""
    processes = find_processes(args)
    check_processes(cfg, args)
    if not args.eval_only:
        check_solver(cfg, processes.total)
    if processes.local_rank == 0:
        check_weights(cfg, resume=args.resume)
        check_model(cfg)
        check_upsamplers_are_used(cfg, args.config_file, args.opts)
        check_datasets(cfg, train=not args.eval_only)


@exit_on_input_error
def main() -> None:
    """Check what was asked for, and run it in all processes."""
    parser = default_argument_parser()
    parser.set_defaults(dist_url="auto")  # a free port, so that runs side by side do not meet
    args = parser.parse_args()
    logging.raiseExceptions = False  # or a full disk gives a traceback for each line of the log
    rank = find_processes(args).rank
    setup_logger(distributed_rank=rank, name="lda_aqu")
    # Who asks for several GPUs is not to get CPUs unasked.
    cfg = load_config(args.config_file, args.opts, device="cuda" if args.num_gpus > 1 else "auto")
    cfg.freeze()
    make_folder(cfg.OUTPUT_DIR, "OUTPUT_DIR")
    # Of all the processes of a run, one locks the folder that they share.
    with lock_output(cfg.OUTPUT_DIR) if rank == 0 else contextlib.nullcontext():
        check(cfg, args)
        launch(run, cfg, args)


if __name__ == "__main__":
    main()
