#!/usr/bin/env python
"""Measure how far a model's upsamplers of local attention look, and how they weigh what they see.

measure_sampling.py --config-file configs/..._lda_aqu.yaml --weights FILE ... [--limit N] \
    [KEY VALUE ...]

Means over the output pixels of images of DATASETS.TEST, and over the models where several weights
are named, as those of the seeds of a study. Lengths are in output pixels.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence

from detectron2.utils.logger import setup_logger
from lda_aqu.benchmark.report import Table
from lda_aqu.engine import check_trained_weights, first_test_images, load_config, load_model
from lda_aqu.errors import exit_on_input_error
from lda_aqu.evaluation import SamplingStatistics, sampling_statistics
from tqdm import tqdm

NOTES = (
    "offset: mean length of an offset, in output pixels",
    "distance: from an output pixel to what it reads, as it is weighed, in output pixels",
    "outside window: share of the attention outside the k_u x k_u pixels around the output pixel",
    "off map: share of the attention beyond the map, where all is zero",
    "points: how many share the attention, 1 / sum of its squares",
)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="the model's config")
    parser.add_argument("--weights", required=True, nargs="+", help="weights of one or more models")
    parser.add_argument("--limit", type=int, default=32, help="number of images; default 32")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="config keys, KEY VALUE ..., after all else"
    )
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    setup_logger(name="lda_aqu")
    cfg = load_config(args.config_file, args.opts)
    for weights in args.weights:
        cfg.MODEL.WEIGHTS = weights
        check_trained_weights(cfg)
    images = first_test_images(cfg, args.limit)
    measured: dict[str, list[SamplingStatistics]] = {}
    for weights in tqdm(args.weights, unit="model", leave=False):
        cfg.MODEL.WEIGHTS = weights
        model = load_model(cfg)
        for name, values in sampling_statistics(model, images).items():
            measured.setdefault(name, []).append(values)
    rows = [
        {"upsampler": name}
        | {
            field.replace("_", " "): statistics.mean(getattr(values, field) for values in of_models)
            for field in SamplingStatistics._fields
        }
        for name, of_models in measured.items()
    ]
    title = f"Images of {cfg.DATASETS.TEST[0]}: {len(images)}; models: {len(args.weights)}"
    print(Table("sampling", title, rows, NOTES).text("github"))


if __name__ == "__main__":
    sys.exit(main())
