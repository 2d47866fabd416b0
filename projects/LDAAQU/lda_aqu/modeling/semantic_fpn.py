"""Panoptic FPN's semantic head with any registered upsampler."""

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import build_upsampler_from_config
from ..random_seeds import fork_cpu_rng
from ..upsamplers import Upsampler


@SEM_SEG_HEADS_REGISTRY.register()
class UpsamplerSemSegFPNHead(SemSegFPNHead):
    """Detectron2's SemSegFPNHead (Kirillov et al., CVPR 2019) with its upsampling replaced.

    Modules are named as in :class:`SemSegFPNHead`: an upsampler takes the place, and so the index,
    of the bilinear step it replaces ("p3.1", "p4.3", ...). That of the logits is
    ``logits_upsampler``.

    Shapes: L levels of (N, C, H / stride, W / stride), K classes, targets (N, H, W).

    Args:
        input_shape: channels and stride of each input map.
        make_upsampler: called once for each 2x step; returns a module that upsamples
            (N, conv_dims, h, w) by 2.
        logits_upsampler: upsamples the logits, (N, K, h, w), by ``common_stride``.
        kwargs: the other arguments of :class:`SemSegFPNHead`.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        make_upsampler: Callable[[], nn.Module],
        logits_upsampler: nn.Module,
        **kwargs: Any,
    ) -> None:
        super().__init__(input_shape=input_shape, **kwargs)
        with fork_cpu_rng():
            for scale_head in self.scale_heads:
                for index, layer in enumerate(scale_head):
                    if isinstance(layer, nn.Upsample):
                        scale_head[index] = make_upsampler()
        self.logits_upsampler = logits_upsampler

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Arguments of the constructor.

        The upsamplers are ``MODEL.SEM_SEG_HEAD.UPSAMPLER`` and ``.LOGITS_UPSAMPLER``.

        Raises:
            InputError: the config names an upsampler that cannot be built.
        """
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "make_upsampler": lambda: build_upsampler_from_config(
                cfg, "MODEL.SEM_SEG_HEAD.UPSAMPLER", head.CONVS_DIM, "MODEL.SEM_SEG_HEAD.CONVS_DIM"
            ),
            "logits_upsampler": build_logits_upsampler(cfg),
        }

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """In training (None, losses of the (N, H, W) targets), else (logits (N, K, H, W), {})."""
        logits = self.layers(features)
        if self.training:
            return None, self.losses(logits, targets)
        return self.logits_upsampler(logits), {}

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``loss_sem_seg`` of logits (N, K, H / common_stride, W / common_stride)."""
        logits = self.logits_upsampler(predictions.float())
        loss = mean_cross_entropy(logits, targets, self.ignore_value)
        return {"loss_sem_seg": loss * self.loss_weight}


def build_logits_upsampler(cfg: CfgNode) -> Upsampler:
    """The upsampler that ``MODEL.SEM_SEG_HEAD.LOGITS_UPSAMPLER`` names.

    Raises:
        InputError: it cannot be built.
    """
    head = cfg.MODEL.SEM_SEG_HEAD
    with fork_cpu_rng():
        return build_upsampler_from_config(
            cfg,
            "MODEL.SEM_SEG_HEAD.LOGITS_UPSAMPLER",
            head.NUM_CLASSES,
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
            head.COMMON_STRIDE,
        )


def mean_cross_entropy(logits: Tensor, targets: Tensor, ignore_value: int) -> Tensor:
    """The mean over the (N, H, W) targets that are not ``ignore_value``; 0 where there are none."""
    loss = F.cross_entropy(logits, targets, ignore_index=ignore_value, reduction="sum")
    return loss / (targets != ignore_value).sum().clamp(min=1)
