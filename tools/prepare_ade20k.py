#!/usr/bin/env python
"""Make the labels that Detectron2 trains on from those of ADE20K: see lda_aqu/data/prepare.py."""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from lda_aqu.data.paths import datasets_root
from lda_aqu.data.prepare import prepare_ade20k
from lda_aqu.errors import exit_on_input_error


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Shift the labels of ADEChallengeData2016 to those that Detectron2 trains on. "
        "An interrupted run is continued by starting it again."
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=datasets_root() / "ADEChallengeData2016",
        help="the dataset as downloaded; default %(default)s",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder to hold annotations_detectron2, which Detectron2 looks for beside images; "
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
    prepare_ade20k(args.root, output, args.workers)
    print(f"Labels in {output / 'annotations_detectron2'}")


if __name__ == "__main__":
    main()
