"""From a config file and options to a config that can be run."""

import logging
import os
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from ..config import add_lda_aqu_config
from ..data import register_coco_format_datasets
from ..errors import InputError, shorten
from ..upsamplers.user_files import import_upsampler_files
from .config_merge import merge, read_config_file, read_options
from .config_values import check_values

logger = logging.getLogger(__name__)


def load_config(config_file: str, opts: list[str], *, device: str = "auto") -> CfgNode:
    """Detectron2's config with this project's keys, a YAML file and options merged into it.

    It has DeepLab's keys too, for those of its schedule, ``SOLVER.POLY_LR_*``, and of its crops.
    The datasets that ``DATASETS.COCO_FORMAT`` names are registered. The Python files that
    ``MODEL.UPSAMPLER_FILES`` lists are run first, as the options of the upsamplers that they
    register are keys, too.

    Args:
        config_file: path of the YAML file, or "" for the defaults.
        opts: ``[KEY, VALUE, ...]``, as on Detectron2's command lines.
        device: ``MODEL.DEVICE`` where nothing sets it. "auto" is a GPU if there is one.

    Raises:
        InputError: a file, a key or a value that cannot be used.
    """
    cfg = get_cfg()
    add_deeplab_config(cfg)
    cfg.MODEL.DEVICE = device
    if config_file and not os.path.isfile(config_file):
        raise InputError(f"config file {config_file!r} does not exist")
    contents = {"options": read_options(opts)}
    if config_file:
        contents = {f"config {config_file}": read_config_file(config_file)} | contents
    _import_upsamplers(contents)
    add_lda_aqu_config(cfg)
    for source, content in contents.items():
        merge(cfg, content, source)
        if cfg.MODEL.TRUST_WEIGHTS and source != "options":
            raise InputError(f"{source}: MODEL.TRUST_WEIGHTS is for the command line alone")
    check_values(cfg)
    cfg.MODEL.DEVICE = _device(cfg.MODEL.DEVICE)
    register_coco_format_datasets(cfg.DATASETS.COCO_FORMAT)
    return cfg


def _import_upsamplers(contents: dict[str, dict[str, Any]]) -> None:
    """Run the files that ``MODEL.UPSAMPLER_FILES`` will name, whose options are keys, too."""
    cfg = CfgNode({"MODEL": {"UPSAMPLER_FILES": [""]}})
    for source, content in contents.items():
        model = content.get("MODEL")
        if isinstance(model, dict) and "UPSAMPLER_FILES" in model:
            merge(cfg, {"MODEL": {"UPSAMPLER_FILES": model["UPSAMPLER_FILES"]}}, source)
    import_upsampler_files(filter(None, cfg.MODEL.UPSAMPLER_FILES))


def _device(name: str) -> str:
    """The device to run on, chosen where ``name`` is "auto"; a numbered GPU is made the current."""
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        chosen = "cuda" if has_gpu else "cpu"
        reason = torch.cuda.get_device_name(0) if has_gpu else "this machine has no usable GPU"
        logger.info("Running on %s (MODEL.DEVICE is auto, %s)", chosen, reason)
        return chosen
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(
            f"MODEL.DEVICE {shorten(name)} is not a device; use auto, cpu or cuda"
        ) from error
    if device.type == "cuda" and not has_gpu:
        raise InputError(
            f"MODEL.DEVICE {name!r}: this machine has no usable GPU; use MODEL.DEVICE cpu (or auto)"
        )
    if device.type == "cuda" and device.index is not None:
        if device.index >= torch.cuda.device_count():
            raise InputError(
                f"MODEL.DEVICE {name!r}: this machine has {torch.cuda.device_count()} usable GPUs, "
                "numbered from 0 on"
            )
        torch.cuda.set_device(device)  # what Detectron2 times and logs is of the current one
    return name
