#!/usr/bin/env python
"""Draw what a model predicts, or has predicted, for images.

visualize_predictions.py --config-file configs/... --weights FILE --input IMAGE_OR_FOLDER ...
visualize_predictions.py --config-file configs/... --weights FILE --dataset NAME
visualize_predictions.py --results coco_instances_results.json --dataset NAME
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import setup_logger
from lda_aqu.engine import add_model_options, check_datasets, check_trained_weights, model_config
from lda_aqu.errors import exit_on_input_error
from lda_aqu.visualization import (
    CocoResults,
    build_predictor,
    class_metadata,
    draw_to_folder,
    find_images,
    load_dataset,
    prepare_output,
)


def probability(text: str) -> float:
    """Parse a number in [0, 1]; argparse names the function in its message."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1]")
    return value


def count(text: str) -> int:
    """Parse a positive integer."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line and check which options go together."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_options(parser, config_required=False)
    parser.add_argument("--input", nargs="+", help="image files, or folders of them")
    parser.add_argument("--dataset", help="registered data set, for images and ground truth")
    parser.add_argument("--results", help="draw these saved COCO results; no model is run")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument(
        "--score-threshold", type=probability, default=0.5, help="of instances; default 0.5"
    )
    parser.add_argument("--limit", type=count, help="draw the first so many images only")
    args = parser.parse_args(argv)
    if (args.input is None) == (args.dataset is None):
        parser.error("give either --input or --dataset")
    if args.results and (args.input or args.weights):
        parser.error("--results goes with --dataset, without --input or --weights")
    if not args.results and not args.config_file:
        parser.error("--config-file is needed to run a model (or --results to run none)")
    return args


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 1 where an image could not be drawn, else 0."""
    args = parse_args(argv)
    setup_logger(name="lda_aqu")
    cfg = model_config(args)
    if not args.results:
        check_trained_weights(cfg)

    if args.input:
        dataset_dicts = [{"file_name": file} for file in find_images(args.input)]
        metadata = class_metadata(cfg)
    else:
        dataset_dicts, metadata = load_dataset(args.dataset, "--dataset")
        cfg.DATASETS.TEST = (args.dataset,)
    to_draw = dataset_dicts[: args.limit]
    prepare_output(args.output, [image["file_name"] for image in to_draw])
    if args.results:
        predict = CocoResults(args.results, dataset_dicts, metadata).predict
    else:
        if args.dataset:
            check_datasets(cfg, train=False)
        predict = build_predictor(cfg)

    failed = draw_to_folder(
        *(to_draw, predict, metadata, args.output, args.score_threshold, cfg.INPUT.VALUE_RANGE)
    )
    print(f"Pictures in {args.output}: {len(to_draw) - len(failed)} drawn, {len(failed)} failed")
    if failed:
        print(f"Could not be drawn: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
