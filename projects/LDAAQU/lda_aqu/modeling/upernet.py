"""UPerNet, a head that fuses a pyramid of maps for semantic segmentation."""

from collections.abc import Callable, Sequence
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import build_upsampler_from_config
from ..errors import InputError
from ..random_seeds import fork_cpu_rng
from ..upsamplers import upsample_to
from ..upsamplers.adaptive_pooling import AdaptiveAvgPool2d
from .semantic_fpn import build_logits_upsampler, mean_cross_entropy


@SEM_SEG_HEADS_REGISTRY.register()
class UPerNetHead(nn.Module):
    """The head of UPerNet (Xiao et al., ECCV 2018) with any registered upsampler.

    The last map is enriched by pyramid pooling, a top-down path adds it to the finer ones, and all
    levels are brought to the finest one's size, concatenated and classified. An auxiliary
    classifier on one map is used in training alone. For use in Detectron2's ``SemanticSegmentor``.

    Which steps are replaced differs between publications. The released UPerNet of DySample's
    authors (tiny-smart/segmentation-with-upsamplers) replaces those of the top-down path alone,
    and so do the defaults here; CARAFE (Wang et al., ICCV 2019) replaces the upsampling before the
    fusion too, and that in the pyramid pooling, which is bilinear here. All three steps are
    bilinear in the baseline.

    Shapes: maps (N, C, H / stride, W / stride), rounded up where a stride does not divide the
    size; K classes; targets (N, H, W). With batch normalisation, training needs N > 1, as the
    coarsest pooled map has a single position.

    Args:
        input_shape: channels and stride of each input map, the auxiliary one included.
        in_features: the maps of the pyramid, from fine to coarse.
        num_classes: K.
        conv_dims: channels of every convolution but the auxiliary one.
        pool_scales: the last map is averaged over grids of these many cells a side.
        norm: name of the norm that follows each convolution, or "" for none.
        dropout: share of the channels dropped before either classifier.
        make_upsampler: called once for each step of the top-down path; returns a module that is
            called with (N, conv_dims, h, w) and the ``output_size``, or, if it is a
            :class:`~lda_aqu.upsamplers.GuidedUpsampler`, the lateral map it is to be added to.
        make_fusion_upsampler: called for each level above the finest with the factor between the
            two; returns a module that is called with that level and the ``output_size``.
        logits_upsampler: upsamples the logits, (N, K, h, w), by the finest map's stride.
        aux_in_feature: the map of the auxiliary classifier.
        aux_channels: channels of its convolution.
        aux_weight: weight of its loss, relative to ``loss_weight``.
        loss_weight: weight of the losses.
        ignore_value: label of the pixels that do not count.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        in_features: Sequence[str],
        num_classes: int,
        conv_dims: int,
        pool_scales: Sequence[int],
        norm: str,
        dropout: float,
        make_upsampler: Callable[[], nn.Module],
        make_fusion_upsampler: Callable[[float], nn.Module],
        logits_upsampler: nn.Module,
        aux_in_feature: str,
        aux_channels: int,
        aux_weight: float,
        loss_weight: float,
        ignore_value: int,
    ) -> None:
        super().__init__()
        self.in_features = tuple(in_features)
        self.aux_in_feature = aux_in_feature
        self.aux_stride = input_shape[aux_in_feature].stride
        self.aux_weight = aux_weight
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value

        *finer, coarsest = (input_shape[name] for name in in_features)
        strides = [shape.stride for shape in (*finer, coarsest)]
        self.pyramid_pooling = PyramidPooling(coarsest.channels, conv_dims, pool_scales, norm)
        self.laterals = nn.ModuleList(
            _convolution(shape.channels, conv_dims, 1, norm) for shape in finer
        )
        self.outputs = nn.ModuleList(_convolution(conv_dims, conv_dims, 3, norm) for _ in finer)
        self.fusion = _convolution(len(strides) * conv_dims, conv_dims, 3, norm)
        self.classifier = _classifier(conv_dims, num_classes, dropout)
        self.aux_classifier = nn.Sequential(
            _convolution(input_shape[aux_in_feature].channels, aux_channels, 3, norm),
            *_classifier(aux_channels, num_classes, dropout),
        )
        with fork_cpu_rng():
            self.upsamplers = nn.ModuleList(make_upsampler() for _ in finer)
            self.fusion_upsamplers = nn.ModuleList(
                make_fusion_upsampler(stride / strides[0]) for stride in strides[1:]
            )
        self.logits_upsampler = logits_upsampler

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Arguments of the constructor, from ``MODEL.SEM_SEG_HEAD`` and ``MODEL.UPERNET``.

        Raises:
            InputError: a value that does not fit; the message names its key.
        """
        head, upernet = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.UPERNET
        _check_config(cfg, input_shape)
        in_features = sorted(head.IN_FEATURES, key=lambda name: input_shape[name].stride)

        def make_upsampler(key: str, scale_factor: float = 2, has_guide: bool = False) -> nn.Module:
            return build_upsampler_from_config(
                cfg, key, head.CONVS_DIM, "MODEL.SEM_SEG_HEAD.CONVS_DIM", scale_factor, has_guide
            )

        return {
            "input_shape": input_shape,
            "in_features": in_features,
            "num_classes": head.NUM_CLASSES,
            "conv_dims": head.CONVS_DIM,
            "pool_scales": upernet.POOL_SCALES,
            "norm": head.NORM,
            "dropout": upernet.DROPOUT,
            "make_upsampler": lambda: make_upsampler(
                "MODEL.SEM_SEG_HEAD.UPSAMPLER", has_guide=True
            ),
            "make_fusion_upsampler": lambda factor: make_upsampler(
                "MODEL.UPERNET.FUSION_UPSAMPLER", factor
            ),
            "logits_upsampler": build_logits_upsampler(cfg),
            "aux_in_feature": upernet.AUX_IN_FEATURE,
            "aux_channels": upernet.AUX_CHANNELS,
            "aux_weight": upernet.AUX_WEIGHT,
            "loss_weight": head.LOSS_WEIGHT,
            "ignore_value": head.IGNORE_VALUE,
        }

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """In training (None, losses of the (N, H, W) targets), else (logits (N, K, H, W), {}).

        Where the finest stride does not divide the input's size, the logits are larger than it by
        less than that stride, as ``SemanticSegmentor`` expects: it crops them.
        """
        logits = self.classifier(self._fused(features))
        if self.training:
            aux_logits = self.aux_classifier(features[self.aux_in_feature])
            return None, self.losses(logits, aux_logits, targets)
        return self.logits_upsampler(logits), {}

    def losses(self, logits: Tensor, aux_logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``loss_sem_seg`` and ``loss_sem_seg_aux`` of logits as the classifiers give them."""
        aux_logits = F.interpolate(
            aux_logits.float(), scale_factor=self.aux_stride, mode="bilinear", align_corners=False
        )
        return {
            "loss_sem_seg": self.loss_weight
            * self._cross_entropy(self.logits_upsampler(logits.float()), targets),
            "loss_sem_seg_aux": self.loss_weight
            * self.aux_weight
            * self._cross_entropy(aux_logits, targets),
        }

    def _fused(self, features: dict[str, Tensor]) -> Tensor:
        """(N, conv_dims, h, w), of the finest map's size, from the maps of all levels."""
        maps = [features[name] for name in self.in_features]
        levels = [self.pyramid_pooling(maps[-1])]
        for index in reversed(range(len(self.laterals))):
            lateral = self.laterals[index](maps[index])
            levels.insert(0, lateral + upsample_to(self.upsamplers[index], levels[0], lateral))
        for index, output in enumerate(self.outputs):
            levels[index] = output(levels[index])
        finest, *coarser = levels
        resized = [
            upsampler(level, output_size=finest.shape[2:])
            for upsampler, level in zip(self.fusion_upsamplers, coarser, strict=True)
        ]
        return self.fusion(torch.cat([finest, *resized], dim=1))

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of the (N, H, W) targets; logits of padded size are cropped to theirs."""
        height, width = targets.shape[1:]
        return mean_cross_entropy(logits[:, :, :height, :width], targets, self.ignore_value)


class PyramidPooling(nn.Module):
    """The pooling of PSPNet (Zhao et al., CVPR 2017): averages over coarse grids join the map.

    Args:
        in_channels: channels of the map.
        out_channels: channels of every convolution and of the result.
        scales: cells a side of each grid.
        norm: name of the norm that follows each convolution, or "" for none.
    """

    def __init__(
        self, in_channels: int, out_channels: int, scales: Sequence[int], norm: str
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                AdaptiveAvgPool2d(scale), _convolution(in_channels, out_channels, 1, norm)
            )
            for scale in scales
        )
        self.bottleneck = _convolution(
            in_channels + len(scales) * out_channels, out_channels, 3, norm
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H, W)."""
        pooled = [
            F.interpolate(branch(x), size=x.shape[2:], mode="bilinear", align_corners=False)
            for branch in self.branches
        ]
        return self.bottleneck(torch.cat([x, *pooled], dim=1))


def _convolution(in_channels: int, out_channels: int, kernel_size: int, norm: str) -> Conv2d:
    """A convolution that keeps the size, its norm and a ReLU."""
    convolution = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
    weight_init.c2_msra_fill(convolution)
    return convolution


def _classifier(in_channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Dropout of whole channels, then logits for each position."""
    convolution = nn.Conv2d(in_channels, num_classes, 1)
    nn.init.normal_(convolution.weight, std=0.01)
    nn.init.zeros_(convolution.bias)
    return nn.Sequential(nn.Dropout2d(dropout), convolution)


def _check_config(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
    """Raise InputError, naming the key, for values that the head cannot be built with."""
    head, upernet = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.UPERNET
    for key, names in (
        ("MODEL.SEM_SEG_HEAD.IN_FEATURES", head.IN_FEATURES),
        ("MODEL.UPERNET.AUX_IN_FEATURE", [upernet.AUX_IN_FEATURE]),
    ):
        unknown = [name for name in names if name not in input_shape]
        if unknown or not names:
            raise InputError(
                f"{key} {', '.join(unknown) or 'is empty'}: "
                f"the backbone's maps are {', '.join(input_shape)}"
            )
    finest = min(input_shape[name].stride for name in head.IN_FEATURES)
    if finest != head.COMMON_STRIDE:
        raise InputError(
            f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE {head.COMMON_STRIDE}: UPerNetHead predicts at the "
            f"stride of the finest map of MODEL.SEM_SEG_HEAD.IN_FEATURES, which is {finest}"
        )
    if not upernet.POOL_SCALES or min(upernet.POOL_SCALES) < 1:
        raise InputError(
            f"MODEL.UPERNET.POOL_SCALES {upernet.POOL_SCALES}: must be positive, and one at least"
        )
    if not 0 <= upernet.DROPOUT < 1:
        raise InputError(f"MODEL.UPERNET.DROPOUT {upernet.DROPOUT}: must be at least 0, below 1")
