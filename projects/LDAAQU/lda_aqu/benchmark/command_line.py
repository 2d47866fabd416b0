"""The options that the measuring tools share."""

import argparse
from pathlib import Path

import torch

from ..errors import InputError
from .report import prepare_folder
from .workload import MEMORY_FORMATS, Setting


def add_shared_options(
    parser: argparse.ArgumentParser,
    size: str,
    output: str,
    repeats: int = 7,
    several_sizes: bool = False,
) -> None:
    """Add the options; ``size``, ``output`` and ``repeats`` are the defaults that differ."""
    form = "images, HxW,HxW,..." if several_sizes else "image, HxW"
    parser.add_argument("--size", default=size, help=f"of the {form}; default {size}")
    parser.add_argument(
        "--output", type=Path, default=Path(output), help=f"folder; default {output}"
    )
    parser.add_argument(
        "--repeats", type=int, default=repeats, help=f"measured runs; default {repeats}"
    )
    parser.add_argument("--threads", type=int, help="CPU threads; PyTorch's choice by default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu")
    parser.add_argument(
        "--memory-format",
        choices=MEMORY_FORMATS,
        default="contiguous",
        help="of the maps and weights; default contiguous",
    )


def add_upsampler_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--only``."""
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="upsamplers, with options where wanted: NAME or NAME:OPTION=VALUE,...; default: all",
    )


def apply_shared_options(args: argparse.Namespace) -> Setting:
    """Check the shared options, make the output folder and set the number of threads.

    Raises:
        InputError: a number that is not positive, a GPU that is not there, a folder that cannot
            be written to.
    """
    for name in ("repeats", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no usable GPU")
    prepare_folder(args.output)
    if args.threads:
        torch.set_num_threads(args.threads)
    return Setting(args.device, getattr(args, "dtype", "float32"), args.memory_format)
