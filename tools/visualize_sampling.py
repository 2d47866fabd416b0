#!/usr/bin/env python
"""Draw how a model's upsamplers see an image.

visualize_sampling.py --config-file configs/... --weights FILE --input IMAGE --output FOLDER
visualize_sampling.py ... --pixels 120,80 31,200

IMAGE_points.png shows the points that each output pixel samples, and their weights, at every
level; IMAGE_offsets.png the offset fields; IMAGE_maps.png the maps before and after each upsampler.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import setup_logger
from lda_aqu.data.images import read_image_file
from lda_aqu.engine import add_model_options, load_model, model_config
from lda_aqu.errors import exit_on_input_error
from lda_aqu.files import make_folder
from lda_aqu.visualization import (
    check_pixels,
    draw_maps,
    draw_offsets,
    draw_points,
    edge_pixels,
    record_upsamplers,
)


def pixel(text: str) -> tuple[int, int]:
    """Parse "X,Y"; argparse names the function in its message."""
    x, y = text.split(",")
    return int(x), int(y)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_options(parser)
    parser.add_argument("--input", required=True, help="the image")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument(
        "--pixels",
        nargs="+",
        type=pixel,
        metavar="X,Y",
        help="image pixels whose output pixels to look at; by default three on strong edges",
    )
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    setup_logger(name="lda_aqu")
    cfg = model_config(args)
    image = read_image_file(args.input, "RGB", cfg.INPUT.VALUE_RANGE)
    check_pixels(args.pixels or (), args.input, image)
    make_folder(args.output, "--output")
    recording = record_upsamplers(load_model(cfg), cfg, args.input)

    figures = {"maps": draw_maps(recording)}
    if recording.sampled:
        figures["points"] = draw_points(recording, args.pixels or edge_pixels(image))
        figures["offsets"] = draw_offsets(recording)
    for name, figure in figures.items():
        figure.savefig(args.output / f"{Path(args.input).stem}_{name}.png", dpi=100)
    for run in recording.sampled:
        lengths = run.sampling.offsets.norm(dim=3)
        print(
            f"{run.name}: offsets of {lengths.mean():.2f} output pixels in the mean, "
            f"{lengths.max():.2f} at most"
        )
    print(f"Pictures in {args.output}: {', '.join(figures)}")


if __name__ == "__main__":
    main()
