"""A Detectron2 model as a function from a tensor to tensors, as exporters want it."""

from collections.abc import Callable

from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

Outputs = dict[str, Tensor]


class TensorModel(nn.Module):
    """A model in evaluation mode, from an image to its raw predictions, without gradients.

    Args:
        model: a Detectron2 model of one of META_ARCHITECTURES, on the CPU.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._predict = META_ARCHITECTURES[type(model).__name__]
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> Outputs:
        """An image (3, H, W) to what the model predicts for it, in the pixels of that image.

        Args:
            image: float32, as ``INPUT.FORMAT`` says, in 0..255, resized as for the model's
                evaluation. Normalisation and padding are part of the model.

        Returns:
            Those that the model has of

            - ``boxes`` (D, 4), float32, (x0, y0, x1, y1); ``scores`` (D), float32; ``classes`` (D),
              int64: the detections, by falling score;
            - ``masks`` (D, M, M), float32: probabilities on a grid over each box;
            - ``sem_seg`` (K, H, W), float32: logits of the classes.
        """
        # Where a model is traced, Detectron2 asks for lengths, which would become constants.
        with patch_builtin_len():
            return self._predict(self.model, image)


def _predict_rcnn(model: nn.Module, image: Tensor) -> Outputs:
    (instances,) = model.inference([{"image": image}], do_postprocess=False)
    return _detections(instances)


def _predict_dense(model: nn.Module, image: Tensor) -> Outputs:
    return _detections(model([{"image": image}])[0]["instances"])


def _predict_panoptic(model: nn.Module, image: Tensor) -> Outputs:
    (instances,), sem_seg = model.inference([{"image": image}], do_postprocess=False)
    return _detections(instances) | {"sem_seg": _cropped(sem_seg, image)}


def _predict_semantic(model: nn.Module, image: Tensor) -> Outputs:
    # Padded here, as torch.export cannot follow how Detectron2 does it.
    divisor = model.backbone.size_divisibility or 1
    height, width = image.shape[1:]
    normalized = (image - model.pixel_mean) / model.pixel_std
    padded = F.pad(normalized, (0, -width % divisor, 0, -height % divisor))
    logits, _ = model.sem_seg_head(model.backbone(padded[None]))
    return {"sem_seg": _cropped(logits, image)}


def _detections(instances: Instances) -> Outputs:
    outputs = {
        "boxes": instances.pred_boxes.tensor,
        "scores": instances.scores,
        "classes": instances.pred_classes,
    }
    if instances.has("pred_masks"):
        outputs["masks"] = instances.pred_masks[:, 0]
    return outputs


def _cropped(logits: Tensor, image: Tensor) -> Tensor:
    """Of (1, K, H', W') what is not padding: (K, H, W)."""
    return logits[0, :, : image.shape[1], : image.shape[2]]


META_ARCHITECTURES: dict[str, Callable[[nn.Module, Tensor], Outputs]] = {
    "GeneralizedRCNN": _predict_rcnn,
    "PanopticFPN": _predict_panoptic,
    "RetinaNet": _predict_dense,
    "SemanticSegmentor": _predict_semantic,
}
"""Of these architectures models can be exported; and how they are called for it."""
