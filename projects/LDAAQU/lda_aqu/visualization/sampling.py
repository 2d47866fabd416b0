"""What the upsamplers of a model do with an image, recorded while the model runs."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..data.images import build_mapper, read_image_file
from ..errors import InputError
from ..upsamplers import LAU, Sampling, Upsampler

NUM_EDGE_PIXELS = 3


class UpsamplerRun(NamedTuple):
    """One upsampler's work on one image, on the CPU."""

    name: str
    """The module's name in the model."""
    stride: float
    """Of the output: image pixels, as the model takes the image, over output pixels."""
    before: Tensor
    """(C, H, W), the input."""
    after: Tensor
    """(C, H', W'), the output."""
    sampling: Sampling | None
    """Of this image, N = 1; None for an upsampler that chooses no points."""


class Recording(NamedTuple):
    """The work of all upsamplers on one image, in the order in which they ran."""

    image: np.ndarray
    """RGB, uint8, (H, W, 3), as in its file."""
    extent: tuple[float, float]
    """Height and width that every map covers, in pixels of ``image``: it, and its padding."""
    runs: list[UpsamplerRun]

    @property
    def sampled(self) -> list[UpsamplerRun]:
        """The runs of the upsamplers that choose points."""
        return [run for run in self.runs if run.sampling is not None]


def record_upsamplers(model: nn.Module, cfg: CfgNode, file: str) -> Recording:
    """Run a model on an image and keep what its upsamplers take, choose and give.

    All modules that are a registered :class:`Upsampler` are recorded but those of the RoI heads,
    whose maps are of regions and not of the image.

    Args:
        model: a Detectron2 model, see :func:`~lda_aqu.engine.load_model`.
        cfg: its config.
        file: the image.

    Raises:
        InputError: the image cannot be read, or the model has no such module.
    """
    image = read_image_file(file, "RGB", cfg.INPUT.VALUE_RANGE)
    upsamplers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Upsampler) and not name.startswith("roi_heads.")
    }
    if not upsamplers:
        raise InputError(
            "the model has no upsampler to look at: MODEL.BACKBONE.NAME is "
            f"{cfg.MODEL.BACKBONE.NAME!r}, not build_resnet_lda_aqu_fpn_backbone or its like"
        )
    mapped = build_mapper(cfg)({"file_name": file})
    padded_sizes: list[tuple[int, int]] = []
    runs: list[UpsamplerRun] = []

    def note_size(_: nn.Module, args: tuple[Tensor]) -> None:
        padded_sizes.append(tuple(args[0].shape[2:]))

    def keep(name: str, module: Upsampler, args: tuple, kwargs: dict[str, Any], y: Tensor) -> None:
        sampling = None
        if isinstance(module, LAU):
            sampling = Sampling(*(t.float().cpu() for t in module.sampling(*args, **kwargs)))
        before, after = (t[0].float().cpu() for t in (args[0], y))
        stride = padded_sizes[-1][0] / after.shape[1]
        runs.append(UpsamplerRun(name, stride, before, after, sampling))

    handles = [model.backbone.register_forward_pre_hook(note_size)]
    for name, module in upsamplers.items():
        handles.append(module.register_forward_hook(partial(keep, name), with_kwargs=True))
    try:
        with torch.no_grad():
            model([mapped])
    finally:
        for handle in handles:
            handle.remove()

    resized = mapped["image"].shape[1:]
    height, width = (
        size * padded / taken
        for size, padded, taken in zip(image.shape[:2], padded_sizes[0], resized, strict=True)
    )
    return Recording(image, (height, width), runs)


def check_pixels(pixels: Sequence[tuple[int, int]], file: str, image: np.ndarray) -> None:
    """Raise InputError unless all (x, y) lie in the image (H, W, 3) of that file."""
    height, width = image.shape[:2]
    for x, y in pixels:
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(
                f"pixel {x},{y} is outside {file}, {width} x {height} (x 0 to "
                f"{width - 1}, y 0 to {height - 1})"
            )


def edge_pixels(image: np.ndarray) -> list[tuple[int, int]]:
    """``NUM_EDGE_PIXELS`` pixels (x, y) on the strongest edges of an RGB image.

    They are a fifth of the image's shorter side apart, and a quarter of that from its border.
    """
    apart = min(image.shape[:2]) // 5
    margin = apart // 4

    gray = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), 2).astype(np.float32)
    strength = np.hypot(cv2.Sobel(gray, -1, 1, 0), cv2.Sobel(gray, -1, 0, 1))
    inside = np.zeros(strength.shape, dtype=bool)
    inside[margin : len(inside) - margin, margin : inside.shape[1] - margin] = True
    strength[~inside] = -1
    pixels = []
    for _ in range(NUM_EDGE_PIXELS):
        y, x = np.unravel_index(strength.argmax(), strength.shape)
        pixels.append((int(x), int(y)))
        cv2.circle(strength, pixels[-1], apart, color=-1.0, thickness=-1)
    return pixels
