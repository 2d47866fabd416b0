#!/usr/bin/env python
"""Draw the figure of docs/unification.md: nearest, bilinear and CARAFE as local attention."""

import argparse
from pathlib import Path

from lda_aqu.errors import exit_on_input_error
from lda_aqu.files import make_folder
from lda_aqu.visualization.unification import draw_unification


@exit_on_input_error
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default="docs/unification.png", help="the picture")
    output = parser.parse_args().output
    make_folder(output.parent, "--output")
    draw_unification().savefig(output, dpi=100)
    print(f"Figure in {output}")


if __name__ == "__main__":
    main()
