#!/usr/bin/env python
"""Measure time and memory of the upsamplers, or of models that differ in the upsampler alone.

What LDA-AQU launches on a GPU is listed without one.

benchmark.py modules [--size 800x1344] [--only NAME ...]
benchmark.py models --config-file configs/... --baseline configs/... [--size 320x533,800x1333]
    [--parts ...] [KEY VALUE ...]
benchmark.py kernels [--autocast float16]
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from lda_aqu.benchmark.agreement import agreement_table
from lda_aqu.benchmark.command_line import (
    add_shared_options,
    add_upsampler_option,
    add_workload_options,
    apply_shared_options,
    apply_workload_options,
)
from lda_aqu.benchmark.cost_tables import model_table, module_table
from lda_aqu.benchmark.implementations import select_implementations
from lda_aqu.benchmark.machine import describe_machine, measure_roofline
from lda_aqu.benchmark.model_workload import PARTS, compared_models
from lda_aqu.benchmark.report import write_report
from lda_aqu.benchmark.settings import DTYPES, FPN_CHANNELS, fpn_steps, parse_size, square_steps
from lda_aqu.errors import InputError, exit_on_input_error
from lda_aqu.ops.triton import is_interpreted

SWEEP_SIDE = 64  # of the maps of the sweep over channels


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)

    modules = commands.add_parser("modules", help="the upsamplers by themselves")
    modules.set_defaults(run=benchmark_modules)
    add_shared_options(modules, "800x1344", "output/benchmark")
    add_upsampler_option(modules)
    modules.add_argument("--dtype", choices=DTYPES, default="float32", help="default float32")
    modules.add_argument(
        "--sweep-sides",
        type=int,
        nargs="*",
        default=[16, 32, 64, 128],
        help=f"sides of the maps of {FPN_CHANNELS} channels of the sweep over resolutions",
    )
    modules.add_argument(
        "--sweep-channels",
        type=int,
        nargs="*",
        default=[64, 128, 256, 512],
        help=f"channels of the maps of {SWEEP_SIDE}x{SWEEP_SIDE} of the sweep over channels",
    )

    models = commands.add_parser("models", help="whole models and parts of them")
    models.set_defaults(run=benchmark_models)
    add_shared_options(models, "800x1344", "output/benchmark")
    models.add_argument("--config-file", required=True, help="the model's config")
    models.add_argument("--baseline", required=True, help="the config it is compared with")
    models.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    models.add_argument(
        "opts", nargs=argparse.REMAINDER, help="config keys for both, KEY VALUE ..., after all else"
    )

    kernels = commands.add_parser("kernels", help="what LDA-AQU launches on an H100 or H200")
    kernels.set_defaults(run=list_kernels)
    add_workload_options(kernels, "800x1344", "output/benchmark", batch_size=2)
    return parser.parse_args(argv)


def benchmark_modules(args: argparse.Namespace) -> int:
    """Measure modules; 1 where a backend does not agree with the published algorithm, else 0."""
    sections = {
        "fpn": fpn_steps(parse_size(args.size)),
        "resolution": square_steps([FPN_CHANNELS], args.sweep_sides),
        "channels": square_steps(args.sweep_channels, [SWEEP_SIDE]),
    }
    implementations = select_implementations(args.only, args.device)
    setting = apply_shared_options(args)

    every_step = [step for steps in sections.values() for step in steps]
    agreement = agreement_table(every_step, implementations, setting)
    wrong = [row for row in agreement.rows if row["agrees"] != "yes"]
    if wrong:
        print(replace(agreement, rows=wrong).text(), file=sys.stderr)
        print("error: these results differ, so nothing is timed", file=sys.stderr)
        return 1

    roofline = measure_roofline(setting, args.repeats)
    tables = [agreement] if agreement.rows else []
    for name, steps in sections.items():
        if steps:
            tables.append(
                module_table(name, steps, implementations, setting, args.repeats, roofline)
            )
    write_report(args.output, "modules", tables, describe_machine(setting) | roofline)
    return 0


def benchmark_models(args: argparse.Namespace) -> int:
    """Measure a model and its baseline."""
    sizes = [parse_size(size) for size in args.size.split(",")]
    setting = apply_shared_options(args)
    models = compared_models((args.baseline, args.config_file), setting, args.opts)
    table = model_table(models, args.parts, sizes, args.repeats)
    write_report(args.output, "models", [table], describe_machine(setting))
    return 0


def list_kernels(args: argparse.Namespace) -> int:
    """List what the finest step of the pyramid launches forward and backward. No GPU is used."""
    step = fpn_steps(parse_size(args.size))[-1]
    setting = apply_workload_options(args)
    if is_interpreted():
        raise InputError("TRITON_INTERPRET=1: kernels are not compiled; unset it")
    try:
        import triton
        from lda_aqu.benchmark.kernel_table import kernel_tables
    except ImportError as error:
        raise InputError(f"kernels are compiled by Triton, which is missing: {error}") from error
    about = {"torch": torch.__version__, "triton": triton.__version__, **asdict(setting)}
    write_report(args.output, "kernels", kernel_tables(step, setting), about)
    return 0


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    args = parse_args(argv)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
