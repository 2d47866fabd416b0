"""Checkpoints as the published implementation saves them, with random weights.

Names and shapes are written down from the published model, not from the converter.
"""

import torch
from torch import Tensor


def published_shapes(
    *,
    blocks: tuple[int, ...] = (3, 4, 6, 3),
    bottleneck: bool = True,
    stem: int = 64,
    res2: int = 256,
    channels: int = 256,
    fc_dim: int = 1024,
    num_classes: int = 80,
    mask_channels: int = 0,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes: by default Faster R-CNN R50, with ``mask_channels`` a mask head as well.

    ``res2`` are the channels of the first stage; the convolutions in a bottleneck have ``stem``.
    """
    shapes = {}

    def layer(name: str, *weight: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = weight
        if bias:
            shapes[f"{name}.bias"] = weight[:1]

    def batch_norm(name: str, width: int) -> None:
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{tensor}"] = (width,)
        shapes[f"{name}.num_batches_tracked"] = ()

    layer("backbone.conv1", stem, 3, 7, 7, bias=False)
    batch_norm("backbone.bn1", stem)
    width, stage_widths = stem, []
    for stage, count in enumerate(blocks):
        inner, outer = stem * 2**stage, res2 * 2**stage
        for index in range(count):
            block = f"backbone.layer{stage + 1}.{index}"
            if bottleneck:
                convolutions = [(inner, width, 1), (inner, inner, 3), (outer, inner, 1)]
            else:
                convolutions = [(inner, width, 3), (outer, inner, 3)]
            for number, (out, into, kernel) in enumerate(convolutions, 1):
                layer(f"{block}.conv{number}", out, into, kernel, kernel, bias=False)
                batch_norm(f"{block}.bn{number}", out)
            if index == 0 and (stage > 0 or width != outer):
                layer(f"{block}.downsample.0", outer, width, 1, 1, bias=False)
                batch_norm(f"{block}.downsample.1", outer)
            width = outer
        stage_widths.append(width)

    for level in range(5):
        kernel = 3 if level == 4 else 1
        layer(
            f"neck.lateral_convs.{level}.conv",
            *(channels, stage_widths[min(level, 3)], kernel, kernel),
        )
        layer(f"neck.fpn_convs.{level}.conv", channels, channels, 3, 3)
    depth = channels // 4
    for level in range(4):
        upsampler = f"neck.upsample_modules.{level}"
        shapes[f"{upsampler}.relative_position_bias_table"] = (1, 1, 1, 9, depth)
        shapes[f"{upsampler}.base_offset"] = (1, 18, 1, 1)
        layer(f"{upsampler}.proj_q", depth, channels, 1, 1, bias=False)
        layer(f"{upsampler}.proj_k", depth, channels, 1, 1, bias=False)
        layer(f"{upsampler}.conv_offset.0", depth // 2, 1, 3, 3, bias=False)
        layer(f"{upsampler}.conv_offset.1.norm", depth // 2)
        layer(f"{upsampler}.conv_offset.3", 18, depth // 2, 3, 3)
        layer(f"{upsampler}.layer_norm.norm", channels)

    layer("rpn_head.rpn_conv", channels, channels, 3, 3)
    layer("rpn_head.rpn_cls", 3, channels, 1, 1)
    layer("rpn_head.rpn_reg", 12, channels, 1, 1)
    layer("roi_head.bbox_head.fc_cls", num_classes + 1, fc_dim)
    layer("roi_head.bbox_head.fc_reg", 4 * num_classes, fc_dim)
    layer("roi_head.bbox_head.shared_fcs.0", fc_dim, channels * 7 * 7)
    layer("roi_head.bbox_head.shared_fcs.1", fc_dim, fc_dim)
    if mask_channels:
        for number in range(4):
            width = mask_channels if number else channels
            layer(f"roi_head.mask_head.convs.{number}.conv", mask_channels, width, 3, 3)
        layer("roi_head.mask_head.upsample", mask_channels, mask_channels, 2, 2)
        layer("roi_head.mask_head.conv_logits", num_classes, mask_channels, 1, 1)
    return shapes


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Random weights under which activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        normal = torch.randn(shape, generator=generator)
        uniform = torch.rand(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(len(weights))
        elif name.endswith("base_offset"):
            window = [[dy, dx] for dy in (-1.0, 0.0, 1.0) for dx in (-1.0, 0.0, 1.0)]
            weights[name] = torch.tensor(window).reshape(shape)
        elif len(shape) > 1:
            fan_in = normal[0].numel()
            # Boxes are changed in moderation: where mmdetection bounds them, Detectron2 does not.
            scale = 0.2 if "_reg" in name else 1.0
            weights[name] = scale * normal * fan_in**-0.5
        elif name.endswith((".bias", ".running_mean")):
            weights[name] = 0.1 * normal
        else:  # scales of the normalisations, and variances
            weights[name] = 0.5 + uniform
    return weights


def published_checkpoint(weights: dict[str, Tensor]) -> dict:
    """The file's content, as mmcv's runner saves it."""
    return {
        "meta": {"epoch": 12, "mmcv_version": "1.5.0", "CLASSES": ("person", "bicycle")},
        "state_dict": weights,
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": []},
    }
