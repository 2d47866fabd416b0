"""The options by which the tools name a trained model."""

import argparse

from detectron2.config import CfgNode

from .setup import load_config


def add_model_options(parser: argparse.ArgumentParser, *, config_required: bool = True) -> None:
    """Add ``--config-file``, ``--weights`` and the config keys at the end."""
    add = parser.add_argument
    add("--config-file", required=config_required, default="", help="the model's config")
    add("--weights", help="the model's weights; instead of MODEL.WEIGHTS")
    add("opts", nargs=argparse.REMAINDER, help="config keys, KEY VALUE ..., after all else")


def model_config(args: argparse.Namespace) -> CfgNode:
    """The config that these options name; see :func:`load_config`."""
    cfg = load_config(args.config_file, args.opts)
    if args.weights:
        cfg.MODEL.WEIGHTS = args.weights
    return cfg
