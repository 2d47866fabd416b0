"""From a config file and options to a config that can be run."""

import difflib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from ..config import add_lda_aqu_config
from ..data import register_coco_format_datasets
from ..errors import InputError
from ..upsamplers.user_files import import_upsampler_files

logger = logging.getLogger(__name__)


def load_config(config_file: str, opts: list[str]) -> CfgNode:
    """Detectron2's config with this project's keys, a YAML file and options merged into it.

    It has DeepLab's keys too, for those of its schedule, ``SOLVER.POLY_LR_*``, and of its crops.
    ``MODEL.DEVICE`` is "auto" where nothing sets it: a GPU if there is one. The datasets that
    ``DATASETS.COCO_FORMAT`` names are registered. The Python files that ``MODEL.UPSAMPLER_FILES``
    lists are run first, as the options of the upsamplers that they register are keys, too.

    Args:
        config_file: path of the YAML file, or "" for the defaults.
        opts: ``[KEY, VALUE, ...]``, as on Detectron2's command lines.

    Raises:
        InputError: a file, a key or a value that cannot be used.
    """
    cfg = get_cfg()
    add_deeplab_config(cfg)
    cfg.MODEL.DEVICE = "auto"
    cfg.MODEL.UPSAMPLER_FILES = []
    if config_file and not os.path.isfile(config_file):
        raise InputError(f"config file {config_file!r} does not exist")
    if len(opts) % 2:
        raise InputError(f"options must be KEY VALUE pairs, and {opts[-1]!r} has no value")
    with _input_errors(config_file, cfg):
        upsampler_files = _upsampler_files(config_file, opts)
    import_upsampler_files(upsampler_files)
    add_lda_aqu_config(cfg)
    with _input_errors(config_file, cfg):
        if config_file:
            cfg.merge_from_file(config_file)
        cfg.merge_from_list(opts)
    cfg.MODEL.DEVICE = _device(cfg.MODEL.DEVICE)
    register_coco_format_datasets(cfg.DATASETS.COCO_FORMAT)
    return cfg


@contextmanager
def _input_errors(config_file: str, cfg: CfgNode) -> Iterator[None]:
    """Raise as InputError what goes wrong while a file and options are merged into ``cfg``."""
    known = set(_keys(cfg))
    try:
        yield
    # What yacs and PyYAML raise for an unknown key, a wrong type and a file that is not YAML.
    except (KeyError, ValueError, AssertionError, yaml.YAMLError, OSError) as error:
        raise InputError(_explain(error, config_file, known)) from error


def _upsampler_files(config_file: str, opts: list[str]) -> list[str]:
    """What ``MODEL.UPSAMPLER_FILES`` will be, before the keys are known that those files add."""
    cfg = CfgNode({"MODEL": {"UPSAMPLER_FILES": []}})
    cfg.set_new_allowed(True)
    if config_file:
        content = CfgNode.load_yaml_with_base(config_file, allow_unsafe=True)
        cfg.merge_from_other_cfg(CfgNode(content))
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if key == "MODEL.UPSAMPLER_FILES":
            cfg.merge_from_list([key, value])
    return cfg.MODEL.UPSAMPLER_FILES


def _keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    """All keys of a config, dotted."""
    for key, value in cfg.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")


def _explain(error: Exception, config_file: str, known: set[str]) -> str:
    """The error of a merge as one line, with the nearest known key where a key is unknown."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    if "Non-existent" in text:
        key = text.split(": ")[-1]
        near = difflib.get_close_matches(key, known, 1)
        text = f"unknown config key {key}" + (f"; did you mean {near[0]}?" if near else "")
    return f"config {config_file or '(defaults)'}: {text}"


def _device(name: str) -> str:
    """The device to run on, chosen where ``name`` is "auto"."""
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        chosen = "cuda" if has_gpu else "cpu"
        reason = torch.cuda.get_device_name(0) if has_gpu else "this machine has no usable GPU"
        logger.info("Running on %s (MODEL.DEVICE is auto, %s)", chosen, reason)
        return chosen
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"MODEL.DEVICE {name!r} is not a device; use auto, cpu or cuda") from error
    if device.type == "cuda" and not has_gpu:
        raise InputError(
            f"MODEL.DEVICE {name!r}: this machine has no usable GPU; use MODEL.DEVICE cpu (or auto)"
        )
    return name
