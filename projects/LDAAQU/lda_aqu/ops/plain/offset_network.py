"""The offset network in plain PyTorch.

Shape shorthand:
    N: batch; d: channels of the query; g: groups; c: channels of a group, d / g
    Y, X: size of the output; H, W: size of the query before it is resized; K: points, k²
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..autocast import without_autocast
from ..layout import laid_out, memory_format_of

EPSILON = 1e-5  # of the normalisation


def predict_offsets(
    query: Tensor,
    depthwise: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    num_groups: int,
    offset_range: float,
    output_size: Sequence[int] | None,
) -> list[Tensor]:
    """The offsets and, if there is an output size (Y, X), the query resized to it.

    See :func:`lda_aqu.ops.predict_offsets`. Convolves in the dtype of the query.
    """
    with without_autocast(query):
        if output_size:
            query = F.interpolate(query, output_size, mode="bilinear", align_corners=True)
            query = laid_out(query, torch.channels_last)
        network = _Network(query, depthwise, conv_weight, num_groups)
        features = network.features()
        dtype = features.dtype
        normalized = F.layer_norm(
            features,
            (int(features.shape[-1]),),
            norm_weight.to(dtype),
            norm_bias.to(dtype),
            EPSILON,
        )
        hidden = network.merge_groups(F.gelu(normalized))
        predicted = F.conv2d(
            hidden.to(query.dtype),
            network.conv_weight,
            conv_bias.to(query.dtype).repeat(num_groups),
            padding=network.padding,
            groups=num_groups,
        )
        # Half precision has no room for fractions of a pixel.
        offsets = offset_range * torch.tanh(predicted.to(dtype))
        shape = (num_groups, conv_weight.shape[0] // 2, 2)
        offsets = offsets.unflatten(1, shape).contiguous()
    return [offsets, query] if output_size else [offsets]


def predict_offsets_backward(
    grads: Sequence[Tensor],
    offsets: Tensor,
    resized: Tensor,
    depthwise: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    num_groups: int,
    offset_range: float,
    input_size: Sequence[int] | None,
) -> list[Tensor]:
    """Gradients of the query and the five parameters, in their order.

    ``resized`` is the query that the network saw. ``input_size`` is (H, W), the size that it was
    resized from, or None if it was not resized; then there is no second gradient among ``grads``.
    """
    aten = torch.ops.aten
    grad_offsets, *grad_resized = grads
    with without_autocast(resized):
        network = _Network(resized, depthwise, conv_weight, num_groups)
        features = network.features()
        dtype = features.dtype
        shape, weight, bias = features.shape[-1:], norm_weight.to(dtype), norm_bias.to(dtype)
        normalized, mean, inverse = torch.native_layer_norm(features, shape, weight, bias, EPSILON)
        hidden = network.merge_groups(F.gelu(normalized)).to(resized.dtype)

        # tanh' is 1 - tanh², and the offsets have tanh; without a range they have no gradient.
        slope = offset_range - offsets.square() / offset_range if offset_range else 0.0
        grad_predicted = (grad_offsets * slope).flatten(1, 3).to(resized.dtype)
        grad_hidden, grad_conv_weight, _ = network.convolution_backward(
            grad_predicted, hidden, network.conv_weight, network.padding, num_groups
        )
        grad_conv_bias = grad_predicted.sum((0, 2, 3), dtype=dtype)
        grad_normalized = aten.gelu_backward(
            network.split_groups(grad_hidden.to(dtype)), normalized
        )
        grad_features, grad_norm_weight, grad_norm_bias = aten.native_layer_norm_backward(
            grad_normalized, features, shape, mean, inverse, weight, bias, [True] * 3
        )
        grad_features = network.merge_groups(grad_features).to(resized.dtype)
        grad_query, grad_depthwise, _ = network.convolution_backward(
            grad_features, resized, network.depthwise, 1, resized.shape[1]
        )
        for grad in grad_resized:
            grad_query = _resize_backward(grad_query + grad, input_size)
        memory_format = torch.channels_last if input_size else memory_format_of(resized)
        return [
            laid_out(grad_query, memory_format),
            network.sum_groups(grad_depthwise).to(depthwise.dtype),
            grad_norm_weight.to(norm_weight.dtype),
            grad_norm_bias.to(norm_bias.dtype),
            network.sum_groups(grad_conv_weight).to(conv_weight.dtype).contiguous(),
            network.sum_groups(grad_conv_bias).to(conv_bias.dtype),
        ]


def _resize_backward(grad: Tensor, input_size: Sequence[int]) -> Tensor:
    """Gradient of a map (N, d, H, W) from that of the map (N, d, Y, X) it was resized to."""
    exact = grad.to(torch.promote_types(grad.dtype, torch.float32))
    for axis, side in zip((2, 3), input_size, strict=True):
        exact = _interpolate_backward(exact, axis, side)
    return exact.to(grad.dtype)


def _interpolate_backward(grad: Tensor, axis: int, input_size: int) -> Tensor:
    """Gradient of a map of ``input_size`` along one axis, which was resized along it."""
    output_size = grad.shape[axis]
    # Positions are fractions of integers: none is rounded.
    steps = max(output_size - 1, 1)
    positions = torch.arange(output_size, device=grad.device) * (input_size - 1)
    lower = positions // steps
    weight = (positions % steps).to(grad.dtype) / steps
    upper_part = grad * weight.view(-1, *[1] * (grad.dim() - 1 - axis))
    shape = list(grad.shape)
    shape[axis] = input_size
    total = grad.new_zeros(shape).index_add_(axis, lower, grad - upper_part)
    return total.index_add_(axis, (lower + 1).clamp(max=input_size - 1), upper_part)


class _Network:
    """The network that the groups share, applied to all of them side by side.

    Channels-last, as the projections leave the query, nothing has to be moved.
    """

    def __init__(
        self, query: Tensor, depthwise: Tensor, conv_weight: Tensor, num_groups: int
    ) -> None:
        self.query, self.num_groups = query, num_groups
        self.depthwise = depthwise.to(query.dtype).repeat(num_groups, 1, 1, 1)
        self.conv_weight = conv_weight.to(query.dtype).repeat(num_groups, 1, 1, 1)
        self.padding = int(conv_weight.shape[-1]) // 2  # in a trace it is a tensor

    def features(self) -> Tensor:
        """What is normalised, (N, Y, X, g, c), in float32 at least."""
        features = F.conv2d(self.query, self.depthwise, padding=1, groups=self.query.shape[1])
        return self.split_groups(features.to(torch.promote_types(features.dtype, torch.float32)))

    def split_groups(self, x: Tensor) -> Tensor:
        """(N, d, Y, X) to (N, Y, X, g, c)."""
        groups = self.num_groups
        return x.permute(0, 2, 3, 1).unflatten(-1, (groups, x.shape[1] // groups))

    @staticmethod
    def merge_groups(x: Tensor) -> Tensor:
        """(N, Y, X, g, c) to (N, d, Y, X), the inverse of :meth:`split_groups`."""
        return x.flatten(-2).permute(0, 3, 1, 2)

    def sum_groups(self, grad: Tensor) -> Tensor:
        """The gradient of a shared parameter, from those of its copies."""
        return grad.unflatten(0, (self.num_groups, grad.shape[0] // self.num_groups)).sum(0)

    @staticmethod
    def convolution_backward(
        grad: Tensor, x: Tensor, weight: Tensor, padding: int, groups: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of a convolution's input and of its weight; the third, of a bias, is empty."""
        return torch.ops.aten.convolution_backward(
            *(grad, x, weight, None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], groups),
            [True, True, False],
        )
