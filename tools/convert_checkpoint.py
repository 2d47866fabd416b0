#!/usr/bin/env python
"""Convert checkpoints of the published implementation (mmdetection 2.x) to ours, and back.

convert_checkpoint.py --config-file CONFIG --input PUBLISHED.pth --output OURS.pth
convert_checkpoint.py --config-file CONFIG --input OURS.pth --output PUBLISHED.pth --to mmdetection
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lda_aqu.conversion import WEIGHTS_KEYS, convert_checkpoint
from lda_aqu.engine import load_config
from lda_aqu.errors import exit_on_input_error
from tabulate import tabulate


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config of the model")
    parser.add_argument("--input", type=Path, required=True, help="the checkpoint to convert")
    parser.add_argument("--output", type=Path, required=True, help="the .pth file to write")
    parser.add_argument(
        "--to", choices=list(WEIGHTS_KEYS), default="detectron2", help="default %(default)s"
    )
    parser.add_argument(
        "--upsamplers-only", action="store_true", help="convert the upsamplers' weights alone"
    )
    parser.add_argument(
        "--into",
        type=Path,
        help="with --upsamplers-only: take all other weights from this checkpoint, which is in "
        "the format that --to names",
    )
    parser.add_argument(
        "--trust-weights",
        action="store_true",
        help="read objects other than tensors, which can run code that the file brings: only for "
        "files whose origin you trust",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="config keys, KEY VALUE ..., after all else"
    )
    args = parser.parse_args(argv)
    if args.into and not args.upsamplers_only:
        parser.error("--into goes with --upsamplers-only")

    rows = convert_checkpoint(
        load_config(args.config_file, args.opts),
        args.input,
        args.output,
        args.to,
        upsamplers_only=args.upsamplers_only,
        into=args.into,
        trusted=args.trust_weights,
    )
    print(tabulate(rows, ["tensor", "becomes", "note"], disable_numparse=True))
    added = sum(not row.source for row in rows)
    left_out = sum(not row.target for row in rows)
    converted = len(rows) - added - left_out
    print(f"{args.output}: {converted} converted, {left_out} left out, {added} added")


if __name__ == "__main__":
    main()
