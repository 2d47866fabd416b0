"""Predictions of a model from images resized and mirrored in several ways: ``TEST.AUG``."""

from collections.abc import Callable, Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNNWithTTA
from fvcore.transforms import HFlipTransform
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class SemanticSegmentorWithTTA(nn.Module):
    """A semantic model whose scores are the mean of those of the augmented images.

    Args:
        cfg: a Detectron2 config. An image is resized to each of ``TEST.AUG.MIN_SIZES``, with no
            side above ``TEST.AUG.MAX_SIZE``, and with ``TEST.AUG.FLIP`` mirrored as well.
        model: a ``SemanticSegmentor``, in evaluation mode.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._augment = DatasetMapperTTA(cfg)

    def forward(self, batched_inputs: Iterable[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Predict the classes of each pixel.

        Args:
            batched_inputs: for each image, "image" (C, H, W) and the size of the output, "height"
                and "width".

        Returns:
            For each image, "sem_seg": the probability of each of K classes, (K, height, width).
        """
        return [{"sem_seg": self._predict(image)} for image in batched_inputs]

    def _predict(self, image: dict[str, Any]) -> Tensor:
        variants = self._augment({key: image[key] for key in ("image", "height", "width")})
        return sum(map(self._probabilities, variants)) / len(variants)

    def _probabilities(self, variant: dict[str, Any]) -> Tensor:
        probabilities = self.model([variant])[0]["sem_seg"].softmax(dim=0)
        mirrored = any(isinstance(t, HFlipTransform) for t in variant["transforms"].transforms)
        return probabilities.flip(-1) if mirrored else probabilities


AUGMENTED: dict[str, Callable[[CfgNode, nn.Module], nn.Module]] = {
    "GeneralizedRCNN": GeneralizedRCNNWithTTA,
    "SemanticSegmentor": SemanticSegmentorWithTTA,
}
"""What augments a model of each ``MODEL.META_ARCHITECTURE`` that can be."""


def augmented(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """A model whose predictions use test-time augmentation, as ``TEST.AUG`` says.

    Args:
        cfg: the model's config, its ``MODEL.META_ARCHITECTURE`` one of AUGMENTED.
        model: the model, or what distributes it.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    return AUGMENTED[cfg.MODEL.META_ARCHITECTURE](cfg, model)
