#!/usr/bin/env python
"""Compare the upsamplers: parameters, FLOPs, time and memory, by themselves and in a model.

compare_upsamplers.py [--only NAME ...] [--config-file configs/...] [--results FILE ...]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lda_aqu.benchmark.command_line import (
    add_shared_options,
    add_upsampler_option,
    apply_shared_options,
)
from lda_aqu.benchmark.comparison import (
    compared_upsamplers,
    comparison_table,
    plot_comparison,
    read_results,
)
from lda_aqu.benchmark.machine import describe_machine
from lda_aqu.benchmark.model_workload import ModelWorkload
from lda_aqu.benchmark.report import write_report
from lda_aqu.benchmark.settings import fpn_steps, parse_size
from lda_aqu.errors import exit_on_input_error

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_CONFIG = ROOT / "configs/COCO-Detection/faster_rcnn_R_50_FPN_1x_lda_aqu.yaml"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file",
        default=str(DEFAULT_CONFIG),
        help="the model, in which MODEL.FPN.UPSAMPLER is replaced; default: Faster R-CNN R50",
    )
    parser.add_argument(
        "--results",
        nargs="+",
        default=[],
        metavar="FILE",
        help="results of a study, whose mean box AP are shown; or NAME=FILE, metrics.json of a "
        "model trained with that upsampler, whose last box AP is",
    )
    add_shared_options(parser, "800x1333", "output/comparison", repeats=3)
    add_upsampler_option(parser)
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="config keys, KEY VALUE ..., after all else"
    )
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    args = parse_args(argv)
    size = parse_size(args.size)
    upsamplers = compared_upsamplers(args.only)
    measured_ap = read_results(args.results, [upsampler.label for upsampler in upsamplers])
    setting = apply_shared_options(args)
    model = ModelWorkload(args.config_file, setting, tuple(args.opts), image_size=size)

    table = comparison_table(upsamplers, model, fpn_steps(size)[-1], measured_ap, args.repeats)
    plot_comparison(args.output / "upsamplers.png", table.rows)
    write_report(args.output, "upsamplers", [table], describe_machine(setting))
    return 0


if __name__ == "__main__":
    sys.exit(main())
