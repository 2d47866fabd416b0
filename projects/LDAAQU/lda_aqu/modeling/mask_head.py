"""Mask R-CNN's mask head with any registered upsampler."""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY, MaskRCNNConvUpsampleHead
from torch import nn

from ..config import build_upsampler_from_config
from ..errors import InputError
from ..random_seeds import fork_cpu_rng


@ROI_MASK_HEAD_REGISTRY.register()
class UpsamplerMaskRCNNConvHead(MaskRCNNConvUpsampleHead):
    """Detectron2's MaskRCNNConvUpsampleHead with its deconvolution replaced.

    Modules are named as in :class:`MaskRCNNConvUpsampleHead`; the upsampler takes the place and
    the name of the deconvolution, ``deconv``.

    Args:
        input_shape: shape of the pooled maps, (N, C, S, S).
        upsampler: upsamples (N, conv_dims[-1], S, S) by 2.
        kwargs: the other arguments of :class:`MaskRCNNConvUpsampleHead`.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, upsampler: nn.Module, **kwargs: Any) -> None:
        super().__init__(input_shape=input_shape, **kwargs)
        self.deconv = upsampler

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Arguments of the constructor; the upsampler is ``MODEL.ROI_MASK_HEAD.UPSAMPLER``.

        Raises:
            InputError: the config names an upsampler that cannot be built, or there is no
                convolution before it and the pooled maps do not have CONV_DIM channels.
        """
        head = cfg.MODEL.ROI_MASK_HEAD
        if head.NUM_CONV == 0 and input_shape.channels != head.CONV_DIM:
            raise InputError(
                f"MODEL.ROI_MASK_HEAD.CONV_DIM {head.CONV_DIM} with NUM_CONV 0: an upsampler keeps "
                f"the number of channels, so set CONV_DIM to that of the input, "
                f"{input_shape.channels}"
            )
        with fork_cpu_rng():
            upsampler = build_upsampler_from_config(
                cfg,
                "MODEL.ROI_MASK_HEAD.UPSAMPLER",
                head.CONV_DIM,
                "MODEL.ROI_MASK_HEAD.CONV_DIM",
            )
        return {**super().from_config(cfg, input_shape), "upsampler": upsampler}
