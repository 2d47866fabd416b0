"""A Detectron2 model from a config, or a part of it, ready to be run on images of noise."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from .. import modeling  # noqa: F401  (registers the builders)
from ..engine import Trainer, load_config
from .workload import DEFAULT_SETTING, MEMORY_FORMATS, Setting

PARTS = ("backbone", "detector", "training")
OBJECTS = 20  # in each image that is trained on


@dataclass(frozen=True)
class ModelWorkload:
    """A model, with random weights, at one image size.

    It is small and can be sent to another process; :meth:`prepare` makes the model.

    Args:
        config_file: the model's config.
        opts: ``(KEY, VALUE, ...)`` merged into it.
        part: "backbone", the forward pass of the backbone with its pyramid; "detector", that of
            the whole model; "training", a step: losses, gradients and the optimizer.
        image_size: (H, W) in pixels.
        batch_size: number of images.
        setting: device and memory format; its dtype is float32.
    """

    config_file: str
    opts: tuple[str, ...] = ()
    part: str = "detector"
    image_size: tuple[int, int] = (800, 1344)
    batch_size: int = 1
    setting: Setting = DEFAULT_SETTING

    def config(self) -> CfgNode:
        """The merged config; InputError if a file, a key or a value cannot be used."""
        cfg = load_config(self.config_file, [*self.opts, "MODEL.DEVICE", self.setting.device])
        # No box suppresses another, so that models have the same number of them to work on.
        cfg.MODEL.RPN.NMS_THRESH = 1.0
        cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 1.0
        cfg.MODEL.RETINANET.NMS_THRESH_TEST = 1.0
        return cfg

    def build(self) -> nn.Module:
        """The model, in evaluation mode; InputError if the config names what cannot be built."""
        torch.manual_seed(0)
        model = build_model(self.config()).eval()
        # Boxes stay where the anchors are: moved at random, some would be empty and be dropped, and
        # models would differ in how many they work on.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "anchor_deltas" in name or "bbox_pred" in name:
                    parameter.zero_()
        return model.to(memory_format=MEMORY_FORMATS[self.setting.memory_format])

    def prepare(self) -> Callable[[], Any]:
        """Make the model and its images, and return a function without arguments that runs it."""
        model = self.build()
        images = noise_images(self.batch_size, self.image_size)
        if self.part == "training":
            return _training_step(self.config(), model.train(), images)
        if self.part == "detector":
            return torch.no_grad()(lambda: model(images))
        divisor = max(model.backbone.size_divisibility, 1)
        padded = [-(-side // divisor) * divisor for side in self.image_size]
        normalized = self.setting.randn(self.batch_size, 3, *padded, seed=0)
        return torch.no_grad()(lambda: model.backbone(normalized))

    def smallest(self) -> "ModelWorkload":
        """The same with small images, to warm up with."""
        return replace(self, image_size=(64, 64))


def noise_images(number: int, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Images of noise in Detectron2's input format, always the same."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8),
            "height": size[0],
            "width": size[1],
        }
        for _ in range(number)
    ]


def _training_step(cfg: CfgNode, model: nn.Module, images: list[dict[str, Any]]) -> Callable:
    """A step that leaves the weights what they are: with noise to learn from they would diverge."""
    cfg.SOLVER.BASE_LR = 0.0
    optimizer = Trainer.build_optimizer(cfg, model)
    generator = torch.Generator().manual_seed(0)
    batch = [image | _labels(cfg, image["image"].shape[1:], generator) for image in images]

    def step() -> None:
        with EventStorage():
            sum(model(batch).values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _labels(cfg: CfgNode, size: tuple[int, int], generator: torch.Generator) -> dict[str, Any]:
    """Random labels of an image of ``size``, (H, W): instances with masks, and semantic labels."""
    height, width = size
    retina = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    classes = (cfg.MODEL.RETINANET if retina else cfg.MODEL.ROI_HEADS).NUM_CLASSES
    centres = torch.rand(OBJECTS, 2, generator=generator)
    extents = 0.02 + 0.2 * torch.rand(OBJECTS, 2, generator=generator)
    corners = torch.cat([centres - extents, centres + extents], 1).clamp(0, 1)
    boxes = corners * torch.tensor([width, height, width, height])

    instances = Instances((height, width))
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.randint(classes, (OBJECTS,), generator=generator)
    instances.gt_masks = _box_masks(cfg.INPUT.MASK_FORMAT, boxes, height, width)
    semantic = torch.randint(
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, (height, width), generator=generator
    )
    return {"instances": instances, "sem_seg": semantic}


def _box_masks(mask_format: str, boxes: Tensor, height: int, width: int) -> BitMasks | PolygonMasks:
    """Masks that fill their boxes, (x0, y0, x1, y1) in pixels."""
    if mask_format == "polygon":
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()
        return PolygonMasks([[polygon] for polygon in corners])
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    x0, y0, x1, y1 = boxes[..., None, None].unbind(1)
    return BitMasks((rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1))
