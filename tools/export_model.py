#!/usr/bin/env python
"""Export a trained model to a file that is checked against PyTorch before it is there.

export_model.py --config-file configs/... --weights FILE --format onnx --output FILE [--evaluate]
"""

import argparse
from collections.abc import Sequence

from detectron2.utils.logger import setup_logger
from lda_aqu.engine import (
    Trainer,
    add_model_options,
    check_datasets,
    check_trained_weights,
    model_config,
)
from lda_aqu.errors import InputError, exit_on_input_error
from lda_aqu.export import FORMATS, ExportedModel, check_exportable, export_model
from lda_aqu.files import make_folder


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_options(parser)
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", required=True, help="the file to write")
    parser.add_argument(
        "--image",
        help="image to check the file with, in which the model finds something; by default, the "
        "first such of DATASETS.TEST",
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="of the images that the file is to take; by default, any",
    )
    parser.add_argument(
        "--evaluate", action="store_true", help="then evaluate the file on DATASETS.TEST"
    )
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    setup_logger(name="lda_aqu")
    cfg = model_config(args)
    check_exportable(cfg, args.format, args.size)
    check_trained_weights(cfg)
    if args.evaluate:
        if args.size:
            raise InputError("--evaluate needs a file for images of any size: leave --size away")
        if cfg.TEST.AUG.ENABLED:
            raise InputError("--evaluate does not augment: set TEST.AUG.ENABLED False")
        check_datasets(cfg, train=False)
        make_folder(cfg.OUTPUT_DIR, "OUTPUT_DIR")
    export_model(cfg, args.output, args.format, args.image, args.size)
    if args.evaluate:
        setup_logger()  # in which the evaluation reports
        Trainer.test(cfg, ExportedModel(args.output, args.format))


if __name__ == "__main__":
    main()
