"""Generate the glyphs demo data set: see lda_aqu/data/glyphs.py for what it holds."""

import argparse
import logging
from pathlib import Path

from lda_aqu.data.glyphs import generate_glyphs
from lda_aqu.data.paths import datasets_root
from lda_aqu.errors import exit_on_input_error


@exit_on_input_error
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Generate the glyphs demo data set.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default_output = datasets_root() / "glyphs"
    parser.add_argument("--output", type=Path, default=default_output, help="its folder")
    parser.add_argument("--train", type=int, default=320, help="number of training images")
    parser.add_argument("--val", type=int, default=80, help="number of validation images")
    parser.add_argument("--size", type=int, default=160, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data set")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    generate_glyphs(args.output, args.train, args.val, args.size, args.seed)
    print(f"The glyphs data set is in {args.output}")


if __name__ == "__main__":
    main()
