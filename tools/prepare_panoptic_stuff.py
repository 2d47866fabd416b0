#!/usr/bin/env python
"""Make Panoptic FPN's semantic labels from COCO's panoptic ones: see lda_aqu/data/prepare.py."""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from lda_aqu.data.paths import datasets_root
from lda_aqu.data.prepare import prepare_panoptic_stuff
from lda_aqu.errors import exit_on_input_error


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Make panoptic_stuff_SPLIT/ from annotations/panoptic_SPLIT.json and "
        "panoptic_SPLIT/. An interrupted run is continued by starting it again."
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=datasets_root() / "coco",
        help="folder of a dataset in COCO's panoptic format; default %(default)s",
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        default=["train2017", "val2017"],
        help="default train2017 val2017",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder to hold panoptic_stuff_SPLIT, which Detectron2 looks for in the root; "
        "default the root",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="number of processes; default %(default)s",
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output = args.output or args.root
    for split in args.splits:
        prepare_panoptic_stuff(args.root, split, output, args.workers)
        print(f"Labels in {output / f'panoptic_stuff_{split}'}")


if __name__ == "__main__":
    main()
