"""Builders of backbones that Detectron2 has as classes alone, and of those of timm.

``MODEL.FPN.BOTTOM_UP`` names one, or any other in Detectron2's BACKBONE_REGISTRY;
``MODEL.BACKBONE.NAME`` may, too, for a head that needs no FPN.
"""

from collections.abc import Collection

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, MViT, SwinTransformer
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem
from torch import Tensor

from ..errors import InputError, as_input_error


class _Swin(SwinTransformer):
    # Detectron2's own property reads an attribute that is never set.
    size_divisibility = 32


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SwinTransformer:
    """Swin Transformer (Liu et al., ICCV 2021) of ``MODEL.SWIN``; maps "p0" to "p3".

    ``MODEL.BACKBONE.FREEZE_AT`` 1 freezes the embedding of the patches, 2 the first stage, too.
    """
    options = {key.lower(): value for key, value in cfg.MODEL.SWIN.items()}
    return _Swin(
        in_chans=input_shape.channels, frozen_stages=cfg.MODEL.BACKBONE.FREEZE_AT or -1, **options
    )


@BACKBONE_REGISTRY.register()
def build_mvit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MViT:
    """MViTv2 (Li et al., CVPR 2022) of ``MODEL.MVIT``; maps "scale2" to "scale5".

    Raises:
        InputError: ``MODEL.BACKBONE.FREEZE_AT`` is not 0.
    """
    _check_nothing_is_frozen(cfg, "build_mvit_backbone")
    options = {key.lower(): value for key, value in cfg.MODEL.MVIT.items()}
    names = tuple(f"scale{stage}" for stage in range(2, 6))
    return MViT(in_chans=input_shape.channels, out_features=names, **options)


@BACKBONE_REGISTRY.register()
def build_regnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> RegNet:
    """RegNet (Dollár et al., CVPR 2021) of ``MODEL.REGNET``; maps "s1" to "s4".

    Its norm is ``MODEL.RESNETS.NORM``.
    """
    options = {key.lower(): value for key, value in cfg.MODEL.REGNET.items()}
    return RegNet(
        # Detectron2's own call says that images have three channels.
        stem_class=lambda _, *arguments: SimpleStem(input_shape.channels, *arguments),
        block_class=ResBottleneckBlock,
        norm=cfg.MODEL.RESNETS.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        out_features=[f"s{stage}" for stage in range(1, 5)],
        **options,
    )


class TimmBackbone(Backbone):
    """The maps of a network of timm (PyTorch Image Models), for Detectron2.

    They are named by their strides as ResNet's are: "res2" has stride 4, "res5" stride 32.

    Args:
        name: as ``timm.list_models()`` has it; of those that take images of any size.
        pretrained: with timm's weights, which it downloads. They expect images of the mean and
            deviation in ``network.pretrained_cfg``.
        in_channels: of the image.

    Shapes: images (N, in_channels, H, W), and maps (N, C, H / stride, W / stride).

    Raises:
        InputError: timm is not installed, has no such network that gives maps of its stages, or
            cannot download its weights.
    """

    def __init__(self, name: str, pretrained: bool = False, in_channels: int = 3) -> None:
        super().__init__()
        # It raises whatever it likes, and what downloads the weights does, too.
        with as_input_error(f"{name!r} of timm", Exception):
            import timm

            self.network = timm.create_model(
                name, pretrained=pretrained, in_chans=in_channels, features_only=True
            )
        strides = self.network.feature_info.reduction()
        self._out_features = [f"res{stride.bit_length() - 1}" for stride in strides]
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))
        channels = self.network.feature_info.channels()
        self._out_feature_channels = dict(zip(self._out_features, channels, strict=True))
        if len(self._out_feature_strides) < len(strides):
            raise InputError(f"{name!r} of timm gives maps of strides {strides}: no pyramid")
        # Some networks of timm have the channels last.
        self._channels_last = getattr(self.network, "output_fmt", None) == "NHWC"

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images to the maps by their names."""
        maps = self.network(x)
        if self._channels_last:
            maps = [y.permute(0, 3, 1, 2) for y in maps]
        return dict(zip(self._out_features, maps, strict=True))


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """The network of timm that ``MODEL.TIMM`` names; maps "res2" to "res5" as a rule.

    Raises:
        InputError: it cannot be built, or ``MODEL.BACKBONE.FREEZE_AT`` is not 0.
    """
    _check_nothing_is_frozen(cfg, "build_timm_backbone")
    try:
        pretrained = cfg.MODEL.TIMM.PRETRAINED and not cfg.MODEL.WEIGHTS
        return TimmBackbone(cfg.MODEL.TIMM.NAME, pretrained, input_shape.channels)
    except InputError as error:
        raise InputError(f"MODEL.TIMM.NAME {error}") from error


def freeze_unread_norms(bottom_up: Backbone, in_features: Collection[str]) -> None:
    """Freeze the norms that Swin and MViT have for each of their maps, where a map is not read.

    Distributed training refuses parameters that may be trained and have no gradient.
    """
    for name in bottom_up.output_shape().keys() - set(in_features):
        for norm in (f"norm{name.removeprefix('p')}", f"{name}_norm"):
            if hasattr(bottom_up, norm):
                getattr(bottom_up, norm).requires_grad_(False)


def _check_nothing_is_frozen(cfg: CfgNode, builder: str) -> None:
    frozen = cfg.MODEL.BACKBONE.FREEZE_AT
    if frozen:
        raise InputError(
            f"MODEL.BACKBONE.FREEZE_AT {frozen}: {builder} freezes nothing, set it to 0"
        )
