#!/usr/bin/env python
"""Measure how far the maps of a model's feature pyramid are from those of another.

compare_pyramids.py --baseline configs/..._nearest.yaml --config-file configs/..._lda_aqu.yaml \
    --weights FILE [--limit N] [KEY VALUE ...]

For each level: ||map - baseline's map|| / ||baseline's map||, over images of DATASETS.TEST. So it
tells what another upsampler does to a trained model, before it is tuned and after.
"""

import argparse
import sys
from collections.abc import Sequence

from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from lda_aqu.engine import check_trained_weights, first_test_images, load_config, load_model
from lda_aqu.errors import exit_on_input_error
from lda_aqu.evaluation import relative_feature_change
from tqdm import tqdm


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="the model's config")
    parser.add_argument("--weights", required=True, help="the model's weights")
    parser.add_argument("--baseline", required=True, help="the config it is compared with")
    parser.add_argument("--baseline-weights", help="the baseline's; default: those of --weights")
    parser.add_argument("--limit", type=int, default=32, help="number of images; default 32")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        help="config keys of --config-file, KEY VALUE ..., after all else; MODEL.DEVICE and "
        "MODEL.TRUST_WEIGHTS are those of the baseline, too",
    )
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    setup_logger(name="lda_aqu")
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.WEIGHTS = args.weights
    baseline_cfg = load_config(args.baseline, ["MODEL.DEVICE", cfg.MODEL.DEVICE])
    baseline_cfg.MODEL.WEIGHTS = args.baseline_weights or args.weights
    baseline_cfg.MODEL.TRUST_WEIGHTS = cfg.MODEL.TRUST_WEIGHTS
    check_trained_weights(cfg)
    check_trained_weights(baseline_cfg)
    images = first_test_images(cfg, args.limit)

    seed_all_rng(cfg.SEED if cfg.SEED >= 0 else 0)  # of what is not in the weights
    model, baseline = load_model(cfg), load_model(baseline_cfg)
    batches = tqdm(images, unit="image", leave=False)
    print(f"Relative change of the maps on {len(images)} images of {cfg.DATASETS.TEST[0]}:")
    for level, change in relative_feature_change(model, baseline, batches).items():
        print(f"{level} {change:.4f}")


if __name__ == "__main__":
    sys.exit(main())
