#!/usr/bin/env python
"""Measure time and memory of the upsamplers, or of models that differ in the upsampler alone.

benchmark.py modules [--size 800x1344] [--only NAME ...]
benchmark.py models --config-file configs/... --baseline configs/... [--size 320x533,800x1333]
    [--parts ...] [KEY VALUE ...]
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lda_aqu.benchmark.command_line import (
    add_shared_options,
    add_upsampler_option,
    apply_shared_options,
)
from lda_aqu.benchmark.implementations import select_implementations
from lda_aqu.benchmark.machine import describe_machine, machine_text, measure_roofline
from lda_aqu.benchmark.model_benchmark import measure_models, model_table, plot_models
from lda_aqu.benchmark.model_workload import PARTS, ModelWorkload
from lda_aqu.benchmark.module_benchmark import (
    agreement_table,
    check_all,
    measure_steps,
    measurement_table,
    plot,
)
from lda_aqu.benchmark.report import write_report
from lda_aqu.benchmark.shapes import channel_sweep, fpn_steps, parse_size, resolution_sweep
from lda_aqu.benchmark.workload import DTYPES
from lda_aqu.errors import InputError, exit_on_input_error

TITLES = {
    "fpn": "Steps of the pyramid",
    "resolution": "Sweep over resolutions",
    "channels": "Sweep over channels",
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    modules = commands.add_parser("modules", help="the upsamplers by themselves")
    add_shared_options(modules, "800x1344", "output/benchmark")
    add_upsampler_option(modules)
    modules.add_argument("--dtype", choices=DTYPES, default="float32", help="default float32")
    modules.add_argument(
        "--sweep-sides",
        type=int,
        nargs="*",
        default=[16, 32, 64, 128],
        help="sides of the square maps of 256 channels of the sweep over resolutions",
    )
    modules.add_argument(
        "--sweep-channels",
        type=int,
        nargs="*",
        default=[64, 128, 256, 512],
        help="channels of the maps of 64x64 of the sweep over channels",
    )

    models = commands.add_parser("models", help="whole models and parts of them")
    add_shared_options(models, "800x1344", "output/benchmark", several_sizes=True)
    models.add_argument("--config-file", required=True, help="the model's config")
    models.add_argument("--baseline", required=True, help="the config it is compared with")
    models.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    models.add_argument("--batch-size", type=int, default=1, help="images; default 1")
    models.add_argument(
        "opts", nargs=argparse.REMAINDER, help="config keys for both, KEY VALUE ..., after all else"
    )
    return parser.parse_args(argv)


def benchmark_modules(args: argparse.Namespace) -> int:
    """Measure modules; 1 where a backend does not agree with the published algorithm, else 0."""
    sections = {
        "fpn": fpn_steps(parse_size(args.size)),
        "resolution": resolution_sweep(args.sweep_sides),
        "channels": channel_sweep(args.sweep_channels),
    }
    implementations = select_implementations(args.only, args.device)
    setting = apply_shared_options(args)
    machine = describe_machine(setting)

    every_step = [step for steps in sections.values() for step in steps]
    agreements = check_all(every_step, implementations, setting)
    tables = [agreement_table(agreements)] if agreements else []
    for table in tables:
        print(table.text())
    wrong = [agreement for agreement in agreements if not agreement.holds]
    if wrong:
        print(f"error: results differ, so nothing is timed: {wrong[0]}", file=sys.stderr)
        return 1

    roofline = measure_roofline(setting, args.repeats)
    machine |= roofline.describe()
    print(machine_text(machine), end="\n\n")
    data = {"agreement": [asdict(agreement) for agreement in agreements]}
    for section, steps in sections.items():
        measurements = measure_steps(steps, implementations, setting, args.repeats, roofline)
        if measurements:
            table = measurement_table(f"{TITLES[section]}, {args.memory_format}", measurements)
            print(table.text())
            tables.append(table)
            plot(args.output / f"modules_{section}.png", section, measurements)
            data[section] = [asdict(measurement) for measurement in measurements]
    write_report(args.output, "modules", tables, machine, data)
    return 0


def benchmark_models(args: argparse.Namespace) -> int:
    """Measure a model and its baseline."""
    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: must be at least 1")
    sizes = [parse_size(size) for size in args.size.split(",")]
    setting = apply_shared_options(args)
    machine = describe_machine(setting)
    models = {
        Path(file).stem: ModelWorkload(
            file, tuple(args.opts), batch_size=args.batch_size, setting=setting
        )
        for file in (args.baseline, args.config_file)
    }
    measurements = measure_models(models, args.parts, sizes, args.repeats)
    images = "image" if args.batch_size == 1 else "images"
    title = f"Models, {args.batch_size} {images}, {args.memory_format}"
    table = model_table(title, measurements)
    print(machine_text(machine), table.text(), sep="\n\n")
    plot_models(args.output / "models.png", measurements)
    data = {"models": [asdict(measurement) for measurement in measurements]}
    write_report(args.output, "models", [table], machine, data)
    return 0


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    args = parse_args(argv)
    run = {"modules": benchmark_modules, "models": benchmark_models}[args.command]
    status = run(args)
    if status == 0:
        print(f"Tables, numbers and plots are in {args.output}")
    return status


if __name__ == "__main__":
    sys.exit(main())
