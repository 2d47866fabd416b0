"""Triton kernels of reassembly, similarity and spread; :mod:`.reassembly` launches them.

Tiles are (channels, pixels): where the values that are read do not follow one another, Triton deals
out the last side of a tile to neighbouring threads, and neighbouring pixels lie close together.

Shape shorthand:
    H, W: input size; Y, X: output size; CHANNELS: of a group; SIDE: of a window, k
"""

# What is known when a kernel is compiled, and the sizes, are in capitals.
# ruff: noqa: N803

import triton
import triton.language as tl

from .tiles import LANES_TAKE_AXIS_0, pixel_tile

# The sizes of maps change from image to image: no kernel is compiled anew for them.
SIZES = ("H", "W", "Y", "X", "ROWS", "COLUMNS")


@triton.jit
def _group_channels(CHANNELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    """What a program works on: a group, and some of its channels; which of them exist."""
    blocks = tl.cdiv(CHANNELS, BLOCK_CHANNELS)
    channel = tl.program_id(1) % blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    return tl.program_id(1) // blocks, channel, channel < CHANNELS


@triton.jit
def _offsets(image, channel, pixel, pixels, DEPTH: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Where the values of a tile lie in a map of DEPTH channels."""
    if CHANNELS_LAST:
        return (image * pixels + pixel)[None, :] * DEPTH + channel[:, None]
    else:
        offsets = (image * DEPTH + channel)[:, None] * pixels + pixel[None, :]
        return tl.max_contiguous(offsets, [1, 2]) if LANES_TAKE_AXIS_0 else offsets


@triton.jit
def _in_window(row, column, tap, mask, H, W, SIDE: tl.constexpr):
    """The input pixel at a position of the window around one, and whether it exists."""
    row += tap // SIDE - SIDE // 2
    column += tap % SIDE - SIDE // 2
    return row * W + column, mask & (row >= 0) & (row < H) & (column >= 0) & (column < W)


@triton.jit(do_not_specialize=SIZES)
def reassemble_kernel(
    x, weights, sums, H, W, Y, X,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, SIDE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Weighted sums over the windows of some output pixels."""
    image, pixel, mask = pixel_tile(tl.program_id(0), Y * X, BLOCK_PIXELS, INDEX)
    group, channel, channel_mask = _group_channels(CHANNELS, BLOCK_CHANNELS)
    row, column = pixel // X * H // Y, pixel % X * W // X
    first_plane = (image * GROUPS + group) * (SIDE * SIDE)
    channel += group * CHANNELS
    total = tl.zeros((BLOCK_CHANNELS, BLOCK_PIXELS), COMPUTE)
    for tap in range(SIDE * SIDE):
        plane = weights + (first_plane + tap) * (Y * X)
        weight = tl.load(plane + pixel, mask=mask, other=0).to(COMPUTE)
        source, inside = _in_window(row, column, tap, mask, H, W, SIDE)
        place = _offsets(image, channel, source, H * W, GROUPS * CHANNELS, CHANNELS_LAST)
        tile = tl.load(x + place, mask=channel_mask[:, None] & inside[None, :], other=0)
        total += tile.to(COMPUTE) * weight[None, :]
    place = _offsets(image, channel, pixel, Y * X, GROUPS * CHANNELS, False)
    tl.store(sums + place, total, mask=channel_mask[:, None] & mask[None, :])


@triton.jit(do_not_specialize=SIZES)
def similarity_kernel(
    x, query, products, H, W, Y, X,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, SIDE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, QUERY_CHANNELS_LAST: tl.constexpr,
    COMPUTE: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_POINTS: tl.constexpr,
):  # fmt: skip
    """Products with the windows of some output pixels, of one group."""
    image, pixel, mask = pixel_tile(tl.program_id(0), Y * X, BLOCK_PIXELS, INDEX)
    group, point = tl.program_id(1), tl.arange(0, BLOCK_POINTS)
    row, column = pixel // X * H // Y, pixel % X * W // X
    total = tl.zeros((BLOCK_POINTS, BLOCK_PIXELS), COMPUTE)
    for start in range(0, CHANNELS, BLOCK_CHANNELS):
        channel = start + tl.arange(0, BLOCK_CHANNELS)
        channel_mask = channel < CHANNELS
        channel += group * CHANNELS
        place = _offsets(image, channel, pixel, Y * X, GROUPS * CHANNELS, QUERY_CHANNELS_LAST)
        queries = tl.load(query + place, mask=channel_mask[:, None] & mask[None, :], other=0)
        queries = queries.to(COMPUTE)
        for tap in range(SIDE * SIDE):
            source, inside = _in_window(row, column, tap, mask, H, W, SIDE)
            place = _offsets(image, channel, source, H * W, GROUPS * CHANNELS, CHANNELS_LAST)
            tile = tl.load(x + place, mask=channel_mask[:, None] & inside[None, :], other=0)
            product = tl.sum(tile.to(COMPUTE) * queries, axis=0)
            total += tl.where(point[:, None] == tap, product[None, :], 0.0)
    place = _offsets(image * GROUPS + group, point, pixel, Y * X, SIDE * SIDE, False)
    tl.store(products + place, total, mask=(point < SIDE * SIDE)[:, None] & mask[None, :])


@triton.jit(do_not_specialize=SIZES)
def spread_kernel(
    weights, query, sums, H, W, Y, X, ROWS, COLUMNS,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, SIDE: tl.constexpr,
    QUERY_CHANNELS_LAST: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Weighted queries, summed up at some input pixels over the windows that hold them.

    Those are the windows of ROWS x COLUMNS output pixels, at most.
    """
    image, pixel, mask = pixel_tile(tl.program_id(0), H * W, BLOCK_PIXELS, INDEX)
    group, channel, channel_mask = _group_channels(CHANNELS, BLOCK_CHANNELS)
    first_plane = (image * GROUPS + group) * (SIDE * SIDE)
    channel += group * CHANNELS
    # Counted from the first row and column of a window around the input pixel.
    row, column = pixel // W + SIDE // 2, pixel % W + SIDE // 2
    first_row = tl.cdiv(tl.maximum(row - (SIDE - 1), 0) * Y, H)
    first_column = tl.cdiv(tl.maximum(column - (SIDE - 1), 0) * X, W)
    total = tl.zeros((BLOCK_CHANNELS, BLOCK_PIXELS), COMPUTE)
    for y in range(ROWS):
        i = first_row + y
        tap_row = row - i * H // Y
        for x in range(COLUMNS):
            j = first_column + x
            tap_column = column - j * W // X
            holds = mask & (i < Y) & (j < X) & (tap_row >= 0) & (tap_column >= 0)
            plane, output = first_plane + tap_row * SIDE + tap_column, i * X + j
            weight = tl.load(weights + plane * (Y * X) + output, mask=holds, other=0).to(COMPUTE)
            place = _offsets(image, channel, output, Y * X, GROUPS * CHANNELS, QUERY_CHANNELS_LAST)
            tile = tl.load(query + place, mask=channel_mask[:, None] & holds[None, :], other=0)
            total += tile.to(COMPUTE) * weight[None, :]
    place = _offsets(image, channel, pixel, H * W, GROUPS * CHANNELS, False)
    tl.store(sums + place, total, mask=channel_mask[:, None] & mask[None, :])
