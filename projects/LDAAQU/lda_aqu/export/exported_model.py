"""An exported model, run as the Detectron2 model that it was."""

from pathlib import Path
from typing import Any

import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import Boxes, Instances

from ..errors import InputError, as_input_error
from .formats import FORMATS


class ExportedModel:
    """A file of :func:`~lda_aqu.export.export_model`, called as a Detectron2 model is.

    Evaluators and drawing take it for the model. It runs on the CPU.

    Args:
        path: the file. Its suffix says the format, unless ``format`` does.
        format: a name in :data:`~lda_aqu.export.FORMATS`.

    Raises:
        InputError: neither says a format, or the file cannot be read.
    """

    def __init__(self, path: str | Path, format: str | None = None) -> None:
        suffixes = {format.suffix: name for name, format in FORMATS.items()}
        name = format or suffixes.get(Path(path).suffix)
        if name not in FORMATS:
            raise InputError(
                f"{str(path)!r}: the suffixes of the formats are {', '.join(suffixes)}"
            )
        # Runtimes raise whatever they like.
        with as_input_error(f"the {name} file {str(path)!r} cannot be read", Exception):
            self.run, self.metadata = FORMATS[name].read(str(path))

    @torch.no_grad()
    def __call__(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Predict for images, as Detectron2's models do.

        Args:
            inputs: dicts with "image", (3, H, W), resized and in the order of channels that the
                ``metadata`` say; and "height" and "width", the size of the output, by default that
                of the image.

        Returns:
            A dict for each image with what the model has of "instances", "sem_seg" and
            "panoptic_seg", in Detectron2's structures.
        """
        return [self._predict(one) for one in inputs]

    def _predict(self, one: dict[str, Any]) -> dict[str, Any]:
        image = one["image"].float()
        size = tuple(image.shape[1:])
        output_size = one.get("height", size[0]), one.get("width", size[1])
        raw, results = self.run(image), {}
        if "sem_seg" in raw:
            results["sem_seg"] = sem_seg_postprocess(raw["sem_seg"], size, *output_size)
        if "boxes" in raw:
            instances = Instances(
                size,
                pred_boxes=Boxes(raw["boxes"]),
                scores=raw["scores"],
                pred_classes=raw["classes"],
            )
            if "masks" in raw:
                instances.pred_masks = raw["masks"][:, None]
            results["instances"] = detector_postprocess(instances, *output_size)
        if "panoptic" in self.metadata:
            results["panoptic_seg"] = combine_semantic_and_instance_outputs(
                results["instances"], results["sem_seg"].argmax(0), *self.metadata["panoptic"]
            )
        return results
