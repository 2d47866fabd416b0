"""DySample: upsampling by sampling at learned positions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from .registry import UPSAMPLER_REGISTRY
from .whole_scale import WholeScaleUpsampler, pixel_shuffle

STYLES = ("lp", "pl")


@UPSAMPLER_REGISTRY.register()
class DySample(WholeScaleUpsampler):
    """Each output pixel reads the input bilinearly at a position of its own.

    Liu et al., "Learning to Upsample by Learning to Sample", ICCV 2023. The position is where
    bilinear upsampling (corners not aligned) reads, plus an offset in input pixels that a 1x1
    convolution predicts: o / 4 with the static scope, o * sigmoid(scope) / 2 with the dynamic one.
    Beyond the border the map is constant. Offsets and positions are in float32 at least.

    The paper's names, with the parameters at 256 channels and 4 groups: DySample is "lp" (8,224),
    DySample+ "lp" with the dynamic scope (16,416), DySample-S "pl" (520), DySample-S+ "pl" with
    the dynamic scope (1,032). Parameter names, shapes and initial values are those of the
    published implementation (tiny-smart/dysample). Its checkpoints hold a constant besides,
    ``init_pos``, which is left aside when they are loaded.
    Other sizes of output: see :class:`WholeScaleUpsampler`.

    Args:
        in_channels: C.
        scale_factor: s, whole.
        style: "lp", offsets are predicted from the input, then shuffled to the output's size; or
            "pl", they are predicted from the shuffled input, which has C / s² channels.
        num_groups: groups of channels with offsets of their own; divides C.
        dynamic_scope: whether the range of the offsets depends on the input.

    Raises:
        InputError: values that do not fit one another.
    """

    config_node = "DYSAMPLE"

    def __init__(
        self,
        in_channels: int,
        scale_factor: float = 2,
        style: str = "lp",
        num_groups: int = 4,
        dynamic_scope: bool = False,
    ) -> None:
        super().__init__(in_channels, scale_factor)
        block = self.scale_factor**2
        if style not in STYLES:
            raise InputError(f"style {style!r}: allowed are {', '.join(STYLES)}")
        if num_groups < 1 or in_channels % num_groups:
            raise InputError(
                f"in_channels ({in_channels}) is not a multiple of num_groups ({num_groups})"
            )
        if style == "pl" and in_channels % block:
            raise InputError(
                f"in_channels ({in_channels}) is not a multiple of scale_factor² ({block}), "
                "as style 'pl' needs"
            )
        self.style = style
        self.num_groups = num_groups
        if style == "lp":
            channels = (in_channels, 2 * num_groups * block)
        else:
            channels = (in_channels // block, 2 * num_groups)
        self.offset = nn.Conv2d(*channels, 1)
        self.scope = nn.Conv2d(*channels, 1, bias=False) if dynamic_scope else None
        self.register_load_state_dict_pre_hook(_leave_out_init_pos)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: hardly any offset, so that it starts as bilinear upsampling."""
        nn.init.normal_(self.offset.weight, std=0.001)
        nn.init.zeros_(self.offset.bias)
        if self.scope is not None:
            nn.init.zeros_(self.scope.weight)

    def upsample(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, sH, sW)."""
        dtype = torch.promote_types(x.dtype, torch.float32)  # half has no room for positions
        grid = self._positions(x, dtype)
        split = (self.num_groups, self.in_channels // self.num_groups)
        groups = x.to(dtype).unflatten(1, split).flatten(0, 1)
        y = F.grid_sample(groups, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return y.unflatten(0, (x.shape[0], self.num_groups)).flatten(1, 2).to(x.dtype)

    def _positions(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Where each output pixel of each group reads: (N * g, sH, sW, 2), (x, y) in [-1, 1]."""
        source = pixel_shuffle(x, self.scale_factor) if self.style == "pl" else x
        offsets = self.offset(source).to(dtype)
        if self.scope is None:
            offsets = offsets / 4
        else:
            offsets = offsets * self.scope(source).to(dtype).sigmoid() / 2
        if self.style == "lp":
            offsets = pixel_shuffle(offsets, self.scale_factor)
        rows, columns = (
            (2 * torch.arange(size, dtype=dtype, device=x.device) + 1) / size - 1
            for size in offsets.shape[2:]
        )
        height, width = x.shape[2:]
        offsets_x, offsets_y = offsets.chunk(2, dim=1)
        grid_x = columns + 2 / width * offsets_x
        grid_y = rows[:, None] + 2 / height * offsets_y
        return torch.stack((grid_x, grid_y), dim=-1).flatten(0, 1)


def _leave_out_init_pos(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Before a state is loaded: drop what follows from the scale factor."""
    state_dict.pop(f"{prefix}init_pos", None)
