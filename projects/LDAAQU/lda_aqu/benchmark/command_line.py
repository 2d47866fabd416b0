"""The options that the measuring tools share."""

import argparse
from pathlib import Path

import torch

from ..errors import InputError
from ..files import make_folder
from .settings import MEMORY_FORMATS, Setting

GPU_REPEATS = 50


def add_shared_options(
    parser: argparse.ArgumentParser, size: str, output: str, repeats: int = 7
) -> None:
    """Add the options; ``size``, ``output`` and ``repeats`` are the defaults that differ."""
    add_workload_options(parser, size, output)
    parser.set_defaults(cpu_repeats=repeats)
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu")
    add("--repeats", type=int, help=f"measured runs; default {repeats}, on a GPU {GPU_REPEATS}")
    add("--threads", type=int, help="CPU threads; PyTorch's choice by default")


def add_workload_options(
    parser: argparse.ArgumentParser, size: str, output: str, batch_size: int = 1
) -> None:
    """Add those of them that say what is run; ``size`` and the others are the defaults."""
    add = parser.add_argument
    add("--size", default=size, help=f"HxW of the image, for models HxW,HxW,...; default {size}")
    add("--output", type=Path, default=Path(output), help=f"folder; default {output}")
    images = f"maps or images at once; default {batch_size}"
    add("--batch-size", type=int, default=batch_size, help=images)
    amp = "dtype of torch.autocast, and of the maps that are upsampled; default: none"
    add("--autocast", choices=("bfloat16", "float16"), help=amp)
    layout = "of the maps and weights; default contiguous"
    add("--memory-format", choices=MEMORY_FORMATS, default="contiguous", help=layout)


def add_upsampler_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--only``."""
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="upsamplers, with options where wanted: NAME or NAME:OPTION=VALUE,...; default: all",
    )


def apply_shared_options(args: argparse.Namespace) -> Setting:
    """Make the output folder; set threads, the default of repeats, and float32 without TF32.

    Raises:
        InputError: a number that is not positive, no GPU, or a folder that cannot be written to.
    """
    _check_positive(args, "repeats", "threads")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no usable GPU")
    setting = apply_workload_options(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    args.repeats = args.repeats or (GPU_REPEATS if args.device == "cuda" else args.cpu_repeats)
    torch.backends.cudnn.allow_tf32 = False
    return setting


def apply_workload_options(args: argparse.Namespace) -> Setting:
    """Make the output folder; InputError for a batch size or a folder that cannot be."""
    _check_positive(args, "batch_size")
    make_folder(args.output, "--output")
    device, dtype = getattr(args, "device", "cpu"), getattr(args, "dtype", "float32")
    return Setting(device, dtype, args.autocast, args.memory_format, args.batch_size)


def _check_positive(args: argparse.Namespace, *names: str) -> None:
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be at least 1")
