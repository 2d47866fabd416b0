"""A config's model, exported to a file that is checked against PyTorch before it is there."""

import logging
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from ..data.images import build_mapper
from ..data.records import load_records
from ..engine import load_model
from ..errors import InputError, as_input_error
from ..files import atomic_write, make_folder
from .agreement import compare
from .exported_model import ExportedModel
from .formats import FORMATS, check_packages
from .tensor_model import META_ARCHITECTURES, TensorModel

logger = logging.getLogger(__name__)

MAX_IMAGES = 20
"""Images of a dataset that are looked through for one in which the model finds something."""


def check_exportable(cfg: CfgNode, format: str, size: tuple[int, int] | None = None) -> None:
    """Raise InputError unless a config's model can be exported to a format.

    Args:
        cfg: the config.
        format: a name in :data:`~lda_aqu.export.FORMATS`.
        size: (H, W) that is to be fixed, or None.
    """
    architecture = cfg.MODEL.META_ARCHITECTURE
    if architecture not in META_ARCHITECTURES:
        raise InputError(
            f"MODEL.META_ARCHITECTURE {architecture} cannot be exported; these can: "
            f"{', '.join(META_ARCHITECTURES)}"
        )
    if cfg.MODEL.KEYPOINT_ON:
        raise InputError("MODEL.KEYPOINT_ON True: keypoints cannot be exported")
    if format == "pt2" and architecture != "SemanticSegmentor":
        raise InputError(
            f"MODEL.META_ARCHITECTURE {architecture} cannot be exported to pt2, as Detectron2's "
            "detectors branch on values: use onnx or torchscript"
        )
    if format == "pt2" and size is None:
        raise InputError("a pt2 file takes images of one size: name it with --size HEIGHT WIDTH")
    if format == "torchscript" and size is not None:
        raise InputError("a TorchScript file takes images of any size: none can be fixed")
    if size is not None and min(size) < 32:
        raise InputError(f"the size {size[0]} x {size[1]} is too small: 32 is the least")
    check_packages(format)


def export_model(
    cfg: CfgNode,
    output: str | Path,
    format: str,
    image_file: str | None = None,
    size: tuple[int, int] | None = None,
) -> None:
    """Export a config's model with its ``MODEL.WEIGHTS``, to run on images one at a time.

    What goes in and comes out says :class:`~.tensor_model.TensorModel`. The file is there once it
    predicts what PyTorch does, within :data:`~.agreement.TOLERANCES`: for a real image, for a part
    of it of another size, and, for a detector, for an empty image.

    Args:
        cfg: the config.
        output: the file.
        format: a name in :data:`~lda_aqu.export.FORMATS`.
        image_file: the image; by default, the first of ``DATASETS.TEST`` in which the model finds
            something.
        size: (H, W) of the images that the file is to take; by default, images of any size.

    Raises:
        InputError: the model cannot be exported, or the image cannot be read or has nothing in it
            for the model, or the file cannot be written or does not predict what PyTorch does.
    """
    output = Path(output)
    check_exportable(cfg, format, size)
    make_folder(output.parent, "the folder of the output")
    if output.is_dir():
        raise InputError(f"the output {str(output)!r} is a folder: name a file in it")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    model = TensorModel(load_model(cfg))
    source, image, expected = _find_image(cfg, model, image_file, size)
    height, width = image.shape[1:]
    metadata = {
        "outputs": list(expected),
        "channels": cfg.INPUT.FORMAT,
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "value_range": cfg.INPUT.VALUE_RANGE,
    }
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN":
        metadata["panoptic"] = [
            model.model.combine_overlap_thresh,
            model.model.combine_stuff_area_thresh,
            model.model.combine_instances_score_thresh,
        ]
    logger.info(
        "Exporting to %s, for images of %s, with %s at %d x %d",
        *(format, f"{height} x {width}" if size else "any size", source, height, width),
    )
    with atomic_write(output) as file:
        # Exporters and runtimes raise whatever they like.
        with as_input_error(f"the model cannot be exported to {format}", Exception):
            FORMATS[format].write(model, image, size is None, metadata, file)
        file.flush()
        run = ExportedModel(file.name, format).run
        for what, pixels in _check_images(model, image, size is None):
            with as_input_error(f"the file exported to {format} fails on {what}", Exception):
                found = model(pixels)
                if what == "an empty image" and len(found["boxes"]):
                    continue  # of equal pixels it finds equal scores, in any order
                differences = compare(found, run(pixels))
            listed = ", ".join(f"{name} {value:.1g}" for name, value in differences.items())
            logger.info("Agrees with PyTorch on %s; largest differences: %s", what, listed)
    logger.info("Written: %s, %.1f MB", output, os.path.getsize(output) / 1e6)


def _check_images(model: TensorModel, image: Tensor, dynamic: bool) -> Iterator[tuple[str, Tensor]]:
    """What is predicted for, by its name, by the original and by the file."""
    yield "the image", image
    if dynamic:
        part = image[:, : image.shape[1] * 3 // 4].transpose(1, 2).contiguous()
        yield f"a part of it, turned, {part.shape[1]} x {part.shape[2]}", part
    else:
        yield "the image upside down", image.flip(1)
    if "boxes" in model(image):
        yield "an empty image", model.model.pixel_mean.expand_as(image).contiguous()


def _find_image(
    cfg: CfgNode, model: TensorModel, image_file: str | None, size: tuple[int, int] | None
) -> tuple[str, Tensor, dict[str, Tensor]]:
    """An image in which the model finds something: its file, its pixels, and what is found."""
    if image_file:
        files = [image_file]
    elif cfg.DATASETS.TEST:
        try:
            records = load_records(cfg.DATASETS.TEST[0])
        except InputError as error:
            raise InputError(f"{error}; or name an image with --image") from error
        files = [record["file_name"] for record in islice(records, MAX_IMAGES)]
    else:
        raise InputError("DATASETS.TEST is empty: name an image with --image")
    mapper = build_mapper(cfg)
    for file in files:
        image = mapper({"file_name": file})["image"].float()
        if size:
            image = F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
        outputs = model(image)
        if all(len(tensor) for tensor in outputs.values()):
            return file, image, outputs
    raise InputError(
        f"the model finds nothing in {files[0]!r}"
        + (f" and {len(files) - 1} others" if len(files) > 1 else "")
        + ": name an image with --image in which it does, or the file could not be checked"
    )
