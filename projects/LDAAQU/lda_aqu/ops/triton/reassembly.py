"""Reassembly, similarity and spread on GPUs: launches the kernels of :mod:`.reassembly_kernels`.

Each is a single kernel, which reads the windows where they lie. Spread is gathered by each input
pixel, so that its sums are the same each time. Shape shorthand as in :mod:`lda_aqu.ops.reassembly`.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..layout import Layout, compute_dtype
from . import reassembly_kernels as kernels
from .launch import index_dtype, launch, triton_dtype
from .maps import dense


def reassemble(x: Tensor, weights: Tensor) -> list[Tensor]:
    """Of x (N, C, H, W) and weights (N, g, k², Y, X): (N, C, Y, X)."""
    groups, points, *size = weights.shape[1:]
    sums = Layout((*x.shape[:2], *size), compute_dtype(x, weights)).empty(x.device)
    source, channels_last = dense(x)
    _launch(
        kernels.reassemble_kernel,
        (source, weights.contiguous(), sums),
        (*x.shape[2:], *size),
        *(groups, points, x.shape[1]),
        CHANNELS_LAST=channels_last,
    )
    return [sums]


def similarity(x: Tensor, query: Tensor, num_groups: int, num_points: int) -> list[Tensor]:
    """Of x (N, C, H, W) and query (N, C, Y, X): (N, g, k², Y, X); ``num_points`` is k²."""
    shape = (len(x), num_groups, num_points, *query.shape[2:])
    products = Layout(shape, compute_dtype(x, query)).empty(x.device)
    source, channels_last = dense(x)
    queries, query_channels_last = dense(query)
    _launch(
        kernels.similarity_kernel,
        (source, queries, products),
        (*x.shape[2:], *query.shape[2:]),
        *(num_groups, num_points, x.shape[1]),
        CHANNELS_LAST=channels_last,
        QUERY_CHANNELS_LAST=query_channels_last,
        BLOCK_POINTS=1 << (num_points - 1).bit_length(),
    )
    return [products]


def spread(weights: Tensor, query: Tensor, height: int, width: int) -> list[Tensor]:
    """Of weights (N, g, k², Y, X) and query (N, C, Y, X): (N, C, H, W)."""
    groups, points, *size = weights.shape[1:]
    sums = Layout((*query.shape[:2], height, width), compute_dtype(weights, query)).empty(
        query.device
    )
    queries, query_channels_last = dense(query)
    # Output pixels over the k rows, or columns, of input pixels whose windows hold one of them.
    most = (
        min(output, -(-math.isqrt(points) * output // side))
        for side, output in zip((height, width), size, strict=True)
    )
    _launch(
        kernels.spread_kernel,
        (weights.contiguous(), queries, sums),
        (height, width, *size, *most),
        *(groups, points, query.shape[1]),
        QUERY_CHANNELS_LAST=query_channels_last,
    )
    return [sums]


def _launch(
    kernel: Any,
    tensors: tuple[Tensor, Tensor, Tensor],
    sizes: Sequence[int],
    groups: int,
    points: int,
    channels: int,
    **constants: Any,
) -> None:
    """Write the last of the tensors. ``sizes`` are (H, W, Y, X) and what else the kernel takes."""
    *read, written = tensors
    if not written.numel():
        return
    images, pixels = len(written), math.prod(written.shape[-2:])
    height, width, rows, columns = sizes[:4]
    largest = max(*(x.numel() for x in tensors), height * rows, width * columns)

    def programs(blocks: dict[str, Any]) -> tuple[int, int]:
        pieces = groups
        if kernel is not kernels.similarity_kernel:  # whose programs have all channels
            pieces *= -(-channels // groups // blocks["BLOCK_CHANNELS"])
        return images * -(-pixels // blocks["BLOCK_PIXELS"]), pieces

    launch(
        kernel,
        programs,
        *(*tensors, *sizes),
        read=read[0],
        width=channels // groups,
        GROUPS=groups,
        CHANNELS=channels // groups,
        SIDE=math.isqrt(points),
        COMPUTE=triton_dtype(written.dtype),
        INDEX=triton_dtype(index_dtype(largest)),
        **constants,
    )
