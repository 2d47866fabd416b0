#!/usr/bin/env python
"""Train a model with several upsamplers and the same seeds each, and compare them in pairs.

study.py --config-file configs/... --upsamplers NAME[:OPTION=VALUE,...] ... --seeds 1-10
    [--baseline NAME] [--jobs N] --output FOLDER [KEY VALUE ...]
study.py --report FOLDER/results.json ... --output FOLDER

Started again, it goes on where it was interrupted; with other upsamplers or seeds, it adds them.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from lda_aqu.errors import InputError, exit_on_input_error
from lda_aqu.study.plan import Study, parse_seeds
from lda_aqu.study.report import write_report
from lda_aqu.study.runner import run_all

TRAIN_NET = Path(__file__).resolve().parents[1] / "train_net.py"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", help="the model")
    parser.add_argument(
        "--key",
        nargs="+",
        default=["MODEL.FPN.UPSAMPLER"],
        help="config keys that name the upsampler; default MODEL.FPN.UPSAMPLER",
    )
    parser.add_argument(
        "--upsamplers",
        nargs="+",
        metavar="NAME",
        help="those that are compared, with options where wanted: NAME or NAME:OPTION=VALUE,...",
    )
    parser.add_argument("--baseline", help="one of the upsamplers; default: the first")
    parser.add_argument("--seeds", default="1-10", help="e.g. 1-10 or 1,2,7-9; default 1-10")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; default 1")
    parser.add_argument("--threads", type=int, help="of each run; default: the cores over the jobs")
    parser.add_argument(
        "--output", type=Path, default=Path("output/study"), help="folder; default output/study"
    )
    parser.add_argument(
        "--report",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="run nothing, and make tables and picture of these results, one file a study",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="config keys, KEY VALUE ..., after all else"
    )
    args = parser.parse_args(argv)
    if not args.report and not (args.config_file and args.upsamplers):
        parser.error("--config-file and --upsamplers are needed, or --report")
    if args.threads is None:
        args.threads = max(1, len(os.sched_getaffinity(0)) // max(1, args.jobs))
    return args


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    args = parse_args(argv)
    if args.report:
        write_report(args.report, args.output)
        return 0
    seeds = parse_seeds(args.seeds)
    for name in ("jobs", "threads"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: must be at least 1")
    study = Study(
        args.config_file,
        opts=tuple(args.opts),
        keys=tuple(args.key),
        upsamplers=tuple(args.upsamplers),
        baseline=args.baseline or args.upsamplers[0],
        output=args.output,
    )
    cfg = study.prepare()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        failed = run_all(study, cfg, seeds, TRAIN_NET, args.jobs, args.threads)
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on", file=sys.stderr)
        return 130
    if study.record():
        write_report([args.output / "results.json"], args.output)
    if failed:
        print(f"{len(failed)} runs failed, see", *failed, sep="\n", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
