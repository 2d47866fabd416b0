"""A Detectron2 model from a config, or a part of it, ready to be run on images of noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

from .. import modeling  # noqa: F401  (registers the builders)
from ..engine import Trainer, load_config
from ..engine.accumulating_trainer import AccumulatingTrainer
from ..errors import InputError
from .settings import DTYPES, MEMORY_FORMATS, Setting

PARTS = ("backbone", "detector", "training")
OBJECTS = 20  # in each image that is trained on


@dataclass(frozen=True)
class ModelWorkload:
    """A model, with random weights, at one image size.

    It is small and can be sent to another process; :meth:`prepare` makes the model.

    Args:
        config_file: the model's config.
        setting: device, autocast, memory format and number of images.
        opts: ``(KEY, VALUE, ...)`` merged into it.
        part: "backbone", the forward pass of the backbone with its pyramid; "detector", that of
            the whole model; "training", a step: losses, gradients and the optimizer.
        image_size: (H, W) in pixels.
    """

    config_file: str
    setting: Setting
    opts: tuple[str, ...] = ()
    part: str = "detector"
    image_size: tuple[int, int] = (800, 1344)

    def config(self) -> CfgNode:
        """The merged config; InputError if a file, a key or a value cannot be used."""
        cfg = load_config(self.config_file, [*self.opts, "MODEL.DEVICE", self.setting.device])
        # No box suppresses another, so that models have the same number of them to work on.
        cfg.MODEL.RPN.NMS_THRESH = 1.0
        cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 1.0
        cfg.MODEL.RETINANET.NMS_THRESH_TEST = 1.0
        # Weights stay what they are: with noise to learn from they would diverge.
        cfg.SOLVER.BASE_LR = 0.0
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
        model, setting, inputs = self.build(), self.setting, self._images()
        if self.part == "training":
            optimizer = Trainer.build_optimizer(self.config(), model.train())
            amp_dtype = DTYPES.get(setting.autocast)
            trainer = AccumulatingTrainer(model, repeat(inputs), optimizer, amp_dtype=amp_dtype)

            def step() -> None:
                with EventStorage():
                    trainer.run_step()

            return step
        if self.part == "backbone":
            model, divisor = model.backbone, max(model.backbone.size_divisibility, 1)
            padded = (-(-side // divisor) * divisor for side in self.image_size)
            inputs = setting.randn(setting.batch_size, 3, *padded, seed=0, dtype=torch.float32)

        def forward() -> Any:
            with torch.no_grad(), setting.autocasting():
                return model(inputs)

        return forward

    def smallest(self) -> "ModelWorkload":
        """The same with small images, to warm up with."""
        return replace(self, image_size=(64, 64))

    def _images(self) -> list[dict[str, Any]]:
        """Images of noise with random labels, in Detectron2's input format; always the same."""
        model, (height, width) = self.config().MODEL, self.image_size
        retina = model.META_ARCHITECTURE == "RetinaNet"
        classes = (model.RETINANET if retina else model.ROI_HEADS).NUM_CLASSES
        torch.manual_seed(0)
        images = []
        for _ in range(self.setting.batch_size):
            corners = torch.rand(OBJECTS, 2, 2).sort(1).values.flatten(1)
            boxes = corners * torch.tensor([width, height, width, height])
            polygons = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()  # which fill the boxes
            instances = Instances(
                (height, width),
                gt_boxes=Boxes(boxes),
                gt_classes=torch.randint(classes, (OBJECTS,)),
                gt_masks=PolygonMasks([[polygon] for polygon in polygons]),
            )
            pixels = torch.randint(256, (3, height, width), dtype=torch.uint8)
            semantic = torch.randint(model.SEM_SEG_HEAD.NUM_CLASSES, (height, width))
            image = {"image": pixels, "height": height, "width": width}
            images.append({**image, "instances": instances, "sem_seg": semantic})
        return images


def compared_models(
    config_files: Sequence[str], setting: Setting, opts: Sequence[str]
) -> dict[str, ModelWorkload]:
    """The models of several configs, by the names of their files; by their paths if two are alike.

    Raises:
        InputError: two are the same file.
    """
    for number, file in enumerate(config_files):
        if Path(file).resolve() in (Path(other).resolve() for other in config_files[:number]):
            raise InputError(f"the config {file!r} would be compared with itself: name another")
    names = [Path(file).stem for file in config_files]
    labels = names if len({*names}) == len(names) else config_files
    return {
        label: ModelWorkload(file, setting, tuple(opts))
        for label, file in zip(labels, config_files, strict=True)
    }
