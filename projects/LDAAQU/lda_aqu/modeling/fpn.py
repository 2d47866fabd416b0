"""Feature pyramids whose top-down path upsamples with any registered upsampler."""

from collections.abc import Callable

import fvcore.nn.weight_init as weight_init
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from ..config import build_upsampler_from_config
from ..errors import InputError, did_you_mean
from ..random_seeds import fork_cpu_rng
from ..upsamplers import upsample_to
from .bottom_up import freeze_unread_norms

TOPOLOGIES = ("detectron2", "published")
FUSE_TYPES = ("sum", "avg")


class UpsamplerFPN(FPN):
    """Detectron2's FPN with its nearest-neighbour upsampling replaced.

    With ``extra_levels`` it is the topology of the published LDA-AQU, which is that of CARAFE's
    FPN (Wang et al., ICCV 2019): levels above the last of ``in_features`` are 3x3 convolutions of
    stride 2, the first of the bottom-up network's last map and each other of the one before, and
    are the top of the top-down path.

    Modules are named as in :class:`FPN`; the upsampler whose output is fused into level n is
    ``fpn_upsample{n}``.

    Args:
        bottom_up, in_features, out_channels, norm, top_block, fuse_type, square_pad: as in
            :class:`FPN`.
        make_upsampler: called once for each step of the top-down path; returns a module that
            upsamples (N, out_channels, H, W) by 2, or a
            :class:`~lda_aqu.upsamplers.GuidedUpsampler`, whose guide is the lateral map that its
            output is fused with.
        extra_levels: levels above the last of ``in_features`` that join the top-down path.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: list[str],
        out_channels: int,
        make_upsampler: Callable[[], nn.Module],
        norm: str = "",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
        extra_levels: int = 0,
        square_pad: int = 0,
    ) -> None:
        super().__init__(
            bottom_up, in_features, out_channels, norm, top_block, fuse_type, square_pad
        )
        # From here on levels are in the order of in_features, from high to low resolution.
        stages = [stride.bit_length() - 1 for stride in self._out_feature_strides.values()]
        stages = stages[: len(in_features)]
        in_channels = bottom_up.output_shape()[in_features[-1]].channels
        for _ in range(extra_levels):
            stage = stages[-1] + 1
            self._add_extra_level(stage, in_channels, out_channels, norm)
            stages.append(stage)
            in_channels = out_channels
        with fork_cpu_rng():
            for stage in stages[:-1]:
                self.add_module(f"fpn_upsample{stage}", make_upsampler())
        self._stages = tuple(stages)

    def _add_extra_level(self, stage: int, in_channels: int, out_channels: int, norm: str) -> None:
        for name, channels, stride in (("lateral", in_channels, 2), ("output", out_channels, 1)):
            convolution = Conv2d(
                channels,
                out_channels,
                kernel_size=3,
                stride=stride,
                padding=1,
                bias=norm == "",
                norm=get_norm(norm, out_channels),
            )
            weight_init.c2_xavier_fill(convolution)
            self.add_module(f"fpn_{name}{stage}", convolution)
        self._out_feature_strides[f"p{stage}"] = self._size_divisibility = 2**stage
        self._out_feature_channels[f"p{stage}"] = out_channels
        self._out_features.append(f"p{stage}")

    def _level(self, part: str, stage: int) -> nn.Module:
        return getattr(self, f"fpn_{part}{stage}")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to the maps of the levels, "p2", "p3", ..., (N, out_channels, h, w).

        Where an upsampled map is larger than the one it is fused into, it is cropped.
        """
        bottom_up = self.bottom_up(x)
        laterals = []
        for level, stage in enumerate(self._stages):
            if level > len(self.in_features):
                source = laterals[-1]
            else:  # the first extra level, like the one below it, is made of the last map
                source = bottom_up[self.in_features[min(level, len(self.in_features) - 1)]]
            laterals.append(self._level("lateral", stage)(source))

        fused = laterals[-1]
        results = [self._level("output", self._stages[-1])(fused)]
        for stage, lateral in zip(self._stages[-2::-1], laterals[-2::-1], strict=True):
            upsampler = self._level("upsample", stage)
            fused = lateral + upsample_to(upsampler, fused, lateral, crop=True)
            if self._fuse_type == "avg":
                fused = fused / 2
            results.insert(0, self._level("output", stage)(fused))

        if self.top_block is not None:
            source = self.top_block.in_feature
            if source in bottom_up:
                features = bottom_up[source]
            else:
                features = results[self._out_features.index(source)]
            results.extend(self.top_block(features))
        return dict(zip(self._out_features, results, strict=True))


def _build_bottom_up(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    name = cfg.MODEL.FPN.BOTTOM_UP
    if name not in BACKBONE_REGISTRY:
        known = [builder for builder, _ in BACKBONE_REGISTRY]
        raise InputError(
            f"MODEL.FPN.BOTTOM_UP {name!r} is not in BACKBONE_REGISTRY{did_you_mean(name, known)}"
        )
    builder = BACKBONE_REGISTRY.get(name)
    if builder.__module__ == __name__:
        raise InputError(
            f"MODEL.FPN.BOTTOM_UP {name} is a pyramid itself: name the network below it, as "
            "build_resnet_backbone"
        )
    bottom_up = builder(cfg, input_shape)
    if not cfg.MODEL.FPN.IN_FEATURES:
        raise InputError(
            f"MODEL.FPN.IN_FEATURES is empty: name maps of {name}, among "
            f"{', '.join(bottom_up.output_shape())}"
        )
    missing = [f for f in cfg.MODEL.FPN.IN_FEATURES if f not in bottom_up.output_shape()]
    if missing:
        raise InputError(
            f"MODEL.FPN.IN_FEATURES {missing[0]!r}: MODEL.FPN.BOTTOM_UP {name} gives "
            f"{', '.join(bottom_up.output_shape())}"
        )
    freeze_unread_norms(bottom_up, cfg.MODEL.FPN.IN_FEATURES)
    return bottom_up


def _build_fpn(
    cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module, num_top_levels: int
) -> UpsamplerFPN:
    """Build the FPN; in Detectron2's topology ``top_block`` makes the ``num_top_levels``."""
    topology, fuse_type = cfg.MODEL.FPN.TOPOLOGY, cfg.MODEL.FPN.FUSE_TYPE
    for key, value, allowed in (
        ("TOPOLOGY", topology, TOPOLOGIES),
        ("FUSE_TYPE", fuse_type, FUSE_TYPES),
    ):
        if value not in allowed:
            raise InputError(f"MODEL.FPN.{key} {value!r}: allowed are {', '.join(allowed)}")
    out_channels = cfg.MODEL.FPN.OUT_CHANNELS
    return UpsamplerFPN(
        bottom_up,
        cfg.MODEL.FPN.IN_FEATURES,
        out_channels,
        lambda: build_upsampler_from_config(
            cfg, "MODEL.FPN.UPSAMPLER", out_channels, "MODEL.FPN.OUT_CHANNELS", has_guide=True
        ),
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block if topology == "detectron2" else None,
        fuse_type=fuse_type,
        extra_levels=0 if topology == "detectron2" else num_top_levels,
    )


@BACKBONE_REGISTRY.register()
def build_resnet_lda_aqu_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> UpsamplerFPN:
    """FPN of the R-CNNs, P2 to P6; as Detectron2's ``build_resnet_fpn_backbone``.

    The bottom-up network is ``MODEL.FPN.BOTTOM_UP``, a ResNet by default, the upsampler
    ``MODEL.FPN.UPSAMPLER``, the topology ``MODEL.FPN.TOPOLOGY``.

    Raises:
        InputError: the config names one of them that cannot be built.
    """
    bottom_up = _build_bottom_up(cfg, input_shape)
    return _build_fpn(cfg, bottom_up, LastLevelMaxPool(), 1)


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_lda_aqu_fpn_backbone(
    cfg: CfgNode, input_shape: ShapeSpec
) -> UpsamplerFPN:
    """FPN of RetinaNet, P3 to P7; as Detectron2's ``build_retinanet_resnet_fpn_backbone``.

    Its parts are named as those of :func:`build_resnet_lda_aqu_fpn_backbone`.

    Raises:
        InputError: the config names one of them that cannot be built.
    """
    bottom_up = _build_bottom_up(cfg, input_shape)
    top = cfg.MODEL.FPN.IN_FEATURES[-1]
    top_channels = bottom_up.output_shape()[top].channels
    top_block = LastLevelP6P7(top_channels, cfg.MODEL.FPN.OUT_CHANNELS, in_feature=top)
    return _build_fpn(cfg, bottom_up, top_block, 2)
