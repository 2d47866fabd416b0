"""torchvision's feature pyramid with any registered upsampler. It needs torchvision."""

from collections import OrderedDict
from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork

from .errors import InputError
from .upsamplers import build_upsampler, upsample_to


class UpsamplerFeaturePyramidNetwork(FeaturePyramidNetwork):
    """torchvision's pyramid (Lin et al., CVPR 2017) with its nearest-neighbour upsampling replaced.

    Parameters are named as in :class:`FeaturePyramidNetwork`; those of the upsampler whose output
    is added to the map of ``inner_blocks.{n}`` are ``upsamplers.{n}.*``. With "Nearest" it is
    torchvision's own, bit for bit.

    Args:
        in_channels_list, out_channels, extra_blocks, norm_layer: as in
            :class:`FeaturePyramidNetwork`.
        upsampler: a name in ``UPSAMPLER_REGISTRY``. The guide of a guided one is the map that its
            output is added to.
        options: options of the upsampler's constructor.

    Raises:
        InputError: unknown name or option, or values that do not fit.
    """

    def __init__(
        self,
        in_channels_list: list[int],
        out_channels: int,
        extra_blocks: ExtraFPNBlock | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
        *,
        upsampler: str = "LDAAQU",
        **options: object,
    ) -> None:
        super().__init__(in_channels_list, out_channels, extra_blocks, norm_layer)
        self.upsamplers = _make_upsamplers(self, upsampler, options)

    def forward(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Maps (N, C_i, H_i, W_i), from high to low resolution, to (N, out_channels, H_i, W_i).

        The maps of ``extra_blocks`` come after them.
        """
        names, maps = list(x), list(x.values())
        laterals = [block(y) for block, y in zip(self.inner_blocks, maps, strict=True)]
        fused = laterals.pop()
        results = [self.layer_blocks[-1](fused)]
        for level, lateral in reversed([*enumerate(laterals)]):
            fused = lateral + upsample_to(self.upsamplers[level], fused, lateral)
            results.insert(0, self.layer_blocks[level](fused))
        if self.extra_blocks is not None:
            results, names = self.extra_blocks(results, maps, names)
        return OrderedDict(zip(names, results, strict=True))


def _make_upsamplers(
    pyramid: FeaturePyramidNetwork, upsampler: str, options: Mapping[str, object]
) -> nn.ModuleList:
    """One for each step of the top-down path, like its layers in device, dtype and mode."""
    weight = pyramid.layer_blocks[0][0].weight
    steps = len(pyramid.inner_blocks) - 1
    made = [build_upsampler(upsampler, weight.shape[0], **options) for _ in range(steps)]
    return nn.ModuleList(made).to(weight.device, weight.dtype).train(pyramid.training)


def use_upsampler(model: nn.Module, upsampler: str, **options: object) -> nn.Module:
    """Make every :class:`FeaturePyramidNetwork` of a torchvision model upsample with this.

    The model is changed in place: its pyramids become :class:`UpsamplerFeaturePyramidNetwork` and
    keep all they have, also pretrained weights; ``upsamplers`` are new, and to be trained. ::

        model = use_upsampler(fasterrcnn_resnet50_fpn(weights="DEFAULT"), "LDAAQU")

    Args:
        model: as of ``torchvision.models.detection``.
        upsampler: a name in ``UPSAMPLER_REGISTRY``.
        options: options of the upsampler's constructor.

    Returns:
        ``model``.

    Raises:
        InputError: there is no pyramid, it is one with a forward of its own, or the upsampler
            cannot be built. The model is then as it was.
    """
    made = []
    for name, module in model.named_modules():
        if not isinstance(module, FeaturePyramidNetwork):
            continue
        if type(module) not in (FeaturePyramidNetwork, UpsamplerFeaturePyramidNetwork):
            raise InputError(
                f"{name or 'the model'} is a {type(module).__name__}, "
                "not torchvision's own FeaturePyramidNetwork"
            )
        made.append((module, _make_upsamplers(module, upsampler, options)))
    if not made:
        raise InputError(
            f"{type(model).__name__} has no torchvision FeaturePyramidNetwork; "
            "lda_aqu.replace_upsampling replaces nn.Upsample in any model"
        )
    for pyramid, upsamplers in made:
        pyramid.__class__ = UpsamplerFeaturePyramidNetwork
        pyramid.upsamplers = upsamplers
    return model
