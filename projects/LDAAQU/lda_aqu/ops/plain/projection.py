"""Layer normalisation and projections in plain PyTorch.

Shape shorthand:
    N: batch; C: channels; H, W: size; D: channels of all projections together
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..autocast import without_autocast
from ..layout import laid_out, memory_format_of

EPSILON = 1e-5  # of the normalisation


def project_normalized(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    widths: Sequence[int],
    dtype: torch.dtype,
) -> list[Tensor]:
    """See :func:`lda_aqu.ops.project_normalized`. Projects in ``dtype``."""
    with without_autocast(x):
        rows = _rows(x)
        parameters = norm_weight.to(rows.dtype), norm_bias.to(rows.dtype)
        normalized = F.layer_norm(rows, (int(rows.shape[-1]),), *parameters, EPSILON).to(dtype)
        normalized = normalized.permute(0, 3, 1, 2)
        return [
            laid_out(F.conv2d(normalized, part.to(dtype)), torch.channels_last)
            for part in weight.split(list(widths))
        ]


def project_normalized_backward(
    grads: Sequence[Tensor],
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    widths: Sequence[int],
    dtype: torch.dtype,
) -> list[Tensor]:
    """Gradients of the map, of the norm's weight and bias, and of the projections' weights."""
    with without_autocast(x):
        rows = _rows(x)
        shape, scale, shift = rows.shape[-1:], norm_weight.to(rows.dtype), norm_bias.to(rows.dtype)
        normalized, mean, inverse = torch.native_layer_norm(rows, shape, scale, shift, EPSILON)
        flat = normalized.flatten(0, 2)
        grad_flat, grad_weights = torch.zeros_like(flat), []
        for grad, part in zip(grads, weight.split(list(widths)), strict=True):
            grad = grad.permute(0, 2, 3, 1).flatten(0, 2)
            grad_weights.append((grad.T @ flat.to(grad.dtype)).to(weight.dtype))
            grad_flat = grad_flat + grad @ part.flatten(1).to(grad.dtype)
        grad_rows, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
            *(grad_flat.view_as(rows), rows, shape, mean, inverse, scale, shift, [True] * 3)
        )
        return [
            laid_out(grad_rows.permute(0, 3, 1, 2).to(x.dtype), memory_format_of(x)),
            grad_norm_weight.to(norm_weight.dtype),
            grad_norm_bias.to(norm_bias.dtype),
            torch.cat(grad_weights).view(weight.shape),
        ]


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H, W, C), in float32 at least."""
    return x.permute(0, 2, 3, 1).to(torch.promote_types(x.dtype, torch.float32))
