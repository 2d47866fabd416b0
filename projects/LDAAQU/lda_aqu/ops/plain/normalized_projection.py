"""Normalisation and projections in plain PyTorch.

Shape shorthand:
    N: batch; C: channels; H, W: size; D: channels of a projection
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..autocast import without_autocast

EPSILON = 1e-5  # of the normalisation


def forward(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Sequence[Tensor],
    dtype: torch.dtype,
) -> list[Tensor]:
    """See :func:`lda_aqu.ops.project_normalized`. Projects in ``dtype``."""
    with without_autocast(x):
        rows = _rows(x)
        parameters = norm_weight.to(rows.dtype), norm_bias.to(rows.dtype)
        normalized = F.layer_norm(rows, rows.shape[-1:], *parameters, EPSILON).to(dtype)
        normalized = normalized.permute(0, 3, 1, 2)
        return [F.conv2d(normalized, weight.to(dtype)) for weight in weights]


def backward(
    grads: Sequence[Tensor],
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of the map, of the norm's weight and bias, and of the projections' weights."""
    with without_autocast(x):
        rows = _rows(x)
        shape, weight, bias = rows.shape[-1:], norm_weight.to(rows.dtype), norm_bias.to(rows.dtype)
        normalized, mean, inverse = torch.native_layer_norm(rows, shape, weight, bias, EPSILON)
        flat = normalized.flatten(0, 2)
        grad_flat, grad_weights = torch.zeros_like(flat), []
        for grad, projection in zip(grads, weights, strict=True):
            grad = grad.permute(0, 2, 3, 1).flatten(0, 2)
            grad_weight = grad.T @ flat.to(grad.dtype)
            grad_weights.append(grad_weight.view(projection.shape).to(projection.dtype))
            grad_flat += grad @ projection.flatten(1).to(grad.dtype)
        grad_rows, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
            *(grad_flat.view_as(rows), rows, shape, mean, inverse, weight, bias, [True] * 3)
        )
    return (
        grad_rows.permute(0, 3, 1, 2).to(x.dtype),
        grad_norm_weight.to(norm_weight.dtype),
        grad_norm_bias.to(norm_bias.dtype),
        grad_weights,
    )


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H, W, C), in float32 at least."""
    return x.permute(0, 2, 3, 1).to(torch.promote_types(x.dtype, torch.float32))
