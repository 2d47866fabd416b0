"""Nearest, bilinear and CARAFE upsampling, each as local deformable attention.

Every function gives the positions and the weights that make :func:`attend`, and so the operator,
that upsampler.

Shape shorthand:
    N: batch; C: channels; K: points, k² with k odd
    H, W: input size; Y, X: output size
"""

import torch
from torch import Tensor

from ..errors import InputError
from .attention import local_deformable_attention

Size = tuple[int, int]


def attend(value: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
    """Run :func:`local_deformable_attention` with the positions and weights that it is given.

    The offsets undo the operator's mapping of output to input pixels. The keys are zero, the
    position bias is the identity, and the query is sqrt(K) log w, so that point n's logit is
    log w_n and its softmax w_n.

    Args:
        value: (N, C, H, W), floating point.
        positions: (K, 2, Y, X), (y, x) in input pixels. Outside the map zero is read.
        weights: (N or 1, K, Y, X), at least 0, of sum 1 over the points.

    Returns:
        (N, C, Y, X), sum over n of w_n value(p_n).

    Raises:
        InputError: a size of 1, which leaves the operator one position to read, 0.
    """
    n, _, *input_size = value.shape
    num_points, _, *output_size = positions.shape
    if min(*input_size, *output_size) < 2:
        raise InputError(f"sizes must be at least 2, got {input_size} and {output_size}")
    to_output = (_per_axis(output_size) - 1) / (_per_axis(input_size) - 1)
    regular = window(_pixels(output_size), round(num_points**0.5))
    offsets = (positions * to_output.to(positions) - regular.to(positions)).to(value)
    weights = weights.to(value).clamp(min=torch.finfo(value.dtype).tiny)  # so that 0 has a log
    return local_deformable_attention(
        (num_points**0.5 * weights.log()).expand(n, -1, -1, -1),
        value.new_zeros(n, num_points, *input_size),
        value,
        offsets.expand(n, 1, -1, -1, -1, -1),
        torch.eye(num_points).to(value)[None],
        num_heads=1,
    )


def nearest(input_size: Size, output_size: Size) -> tuple[Tensor, Tensor]:
    """One point, on the pixel floor(i H / Y): as ``F.interpolate``'s mode "nearest".

    Returns:
        Positions (1, 2, Y, X) and weights (1, 1, Y, X), float64.
    """
    size, out = _per_axis(input_size), _per_axis(output_size)
    return _one_point((_pixels(output_size) * size).div(out, rounding_mode="floor"))


def bilinear(input_size: Size, output_size: Size, align_corners: bool) -> tuple[Tensor, Tensor]:
    """One point between the pixels, where the operator itself interpolates.

    The border is repeated, as ``F.interpolate`` does, by moving the point back to it.

    Args:
        input_size: (H, W).
        output_size: (Y, X).
        align_corners: read at i (H - 1) / (Y - 1), else at (i + 1/2) H / Y - 1/2.

    Returns:
        Positions (1, 2, Y, X) and weights (1, 1, Y, X), float64.
    """
    size, out = _per_axis(input_size), _per_axis(output_size)
    pixels = _pixels(output_size)
    if align_corners:
        positions = pixels * (size - 1) / (out - 1)
    else:
        positions = ((pixels + 0.5) * size / out - 0.5).clamp(min=0).minimum(size - 1)
    return _one_point(positions)


def bilinear_over_pixels(
    input_size: Size, output_size: Size, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """The same result from whole pixels: bilinear weights on 4 of a 3 x 3 window, 0 on the others.

    Returns:
        Positions (9, 2, Y, X) and weights (1, 9, Y, X), float64.
    """
    source, _ = bilinear(input_size, output_size, align_corners)
    positions = window(source[0].floor(), 3)
    return positions, (1 - (positions - source).abs()).clamp(min=0).prod(1)[None]


def carafe(input_size: Size, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The k x k pixels about the nearest one, weighted as CARAFE's encoder says.

    Wang et al., "CARAFE: Content-Aware ReAssembly of FEatures", ICCV 2019; zero
    outside the map.

    Args:
        input_size: (H, W).
        logits: (N, K, Y, X), the encoder's output, of which CARAFE takes the softmax over K.

    Returns:
        Positions (K, 2, Y, X), float64, and weights (N, K, Y, X).
    """
    center, _ = nearest(input_size, tuple(logits.shape[2:]))
    return window(center[0], round(logits.shape[1] ** 0.5)), logits.softmax(1)


def window(center: Tensor, kernel_size: int) -> Tensor:
    """(2, Y, X) to (k², 2, Y, X): the k x k positions about each, in row-major order."""
    reach = torch.arange(kernel_size).to(center) - kernel_size // 2
    return center + torch.cartesian_prod(reach, reach).view(-1, 2, 1, 1)


def _per_axis(size: Size) -> Tensor:
    """(2, 1, 1): a size, to be broadcast over positions, float64."""
    return torch.tensor(size).double().view(2, 1, 1)


def _pixels(size: Size) -> Tensor:
    """(2, Y, X): each pixel's own (i, j), float64."""
    return torch.stack(torch.meshgrid(*(torch.arange(s).double() for s in size), indexing="ij"))


def _one_point(positions: Tensor) -> tuple[Tensor, Tensor]:
    """(2, Y, X) as the positions of a single point, and its weight, 1."""
    return positions[None], positions.new_ones(1, 1, *positions.shape[1:])
