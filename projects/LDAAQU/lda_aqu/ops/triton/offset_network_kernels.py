"""Triton kernels of the offset network; :mod:`.offset_network` launches them.

All but those that resize work on a tile of pixels and one group. Hidden maps and features, which
the groups have side by side as the query has, are channels-last, (N, Y, X, GROUPS CHANNELS); of
offsets and their gradients (N, GROUPS, OUTPUTS, Y, X).

Shape shorthand:
    N: images; H, W: size of the query before it is resized; Y, X: size of the output
    P: pixels of a tile; CHANNELS: of a group; OUTPUTS: of the convolution, 2 for each point
"""

# What is known when a kernel is compiled, and the sizes, are in capitals. None of it may be in a
# tuple: Triton before 3.8 then fails in loops.
# ruff: noqa: N803

import triton
import triton.language as tl

from .tiles import (
    add_product,
    load_row,
    load_tile,
    pixel_tile,
    standardize,
    standardize_backward,
    store_tile,
)

# The sizes of maps change from image to image: no kernel is compiled anew for them.
SIZES = ("images", "H", "W", "Y", "X")


@triton.jit
def _source(index, input_size, output_size, COMPUTE: tl.constexpr):
    """Of a resized map's rows (or columns): the row read, the next, and the share of the next.

    Positions are fractions of integers, so that none is rounded.
    """
    steps = tl.maximum(output_size - 1, 1)
    position = index * (input_size - 1)
    row = position // steps
    share = (position % steps).to(COMPUTE) / steps
    return row, tl.minimum(row + 1, input_size - 1), share


@triton.jit(do_not_specialize=SIZES)
def resize_kernel(
    query, resized, H, W, Y, X,
    DEPTH: tl.constexpr, CHANNELS_LAST: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """The query, resized bilinearly with aligned corners, channels-last."""
    image, pixel, mask = pixel_tile(tl.program_id(0), Y * X, BLOCK_PIXELS, INDEX)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    channel_mask = channel < DEPTH
    row, next_row, down = _source(pixel // X, H, Y, COMPUTE)
    column, next_column, right = _source(pixel % X, W, X, COMPUTE)
    values = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), COMPUTE)
    for corner in tl.static_range(4):
        i, weight_i = (next_row, down) if corner // 2 else (row, 1 - down)
        j, weight_j = (next_column, right) if corner % 2 else (column, 1 - right)
        tile = load_tile(
            query, image, i * W + j, mask, channel, channel_mask, H * W, DEPTH, CHANNELS_LAST
        )
        values += tile.to(COMPUTE) * (weight_i * weight_j)[:, None]
    store_tile(resized, values, image, pixel, mask, channel, channel_mask, Y * X, DEPTH, True)


@triton.jit
def _first_read(index, input_size, output_size):
    """The first row of a resized map that lies on the input row ``index``, or beyond."""
    steps = tl.maximum(output_size - 1, 1)
    span = tl.maximum(input_size - 1, 1)
    first = tl.minimum(tl.cdiv(tl.maximum(index, 0) * steps, span), output_size)
    return tl.where(index < input_size, first, output_size)


@triton.jit(do_not_specialize=(*SIZES, "ROWS", "COLUMNS"))
def resize_backward_kernel(
    grad, grad_query, H, W, Y, X, ROWS, COLUMNS,
    DEPTH: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradient of the query from that of the resized query; both are channels-last.

    Gathered from the output pixels that read a pixel of the query: ROWS x COLUMNS at most.
    """
    image, pixel, mask = pixel_tile(tl.program_id(0), H * W, BLOCK_PIXELS, INDEX)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    channel_mask = channel < DEPTH
    row, column = pixel // W, pixel % W
    first_row, end_row = _first_read(row - 1, H, Y), _first_read(row + 1, H, Y)
    first_column, end_column = _first_read(column - 1, W, X), _first_read(column + 1, W, X)
    total = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), COMPUTE)
    for y in range(ROWS):
        i = first_row + y
        upper, _, down = _source(i, H, Y, COMPUTE)
        weight_i = tl.where(upper == row, 1 - down, down)
        for x in range(COLUMNS):
            j = first_column + x
            left, _, right = _source(j, W, X, COMPUTE)
            weight_j = tl.where(left == column, 1 - right, right)
            reads = mask & (i < end_row) & (j < end_column)
            tile = load_tile(
                grad, image, i * X + j, reads, channel, channel_mask, Y * X, DEPTH, True
            )
            total += tile.to(COMPUTE) * (weight_i * weight_j)[:, None]
    store_tile(grad_query, total, image, pixel, mask, channel, channel_mask, H * W, DEPTH, True)


@triton.jit
def _group_tile(
    number, pixels, GROUPS: tl.constexpr, BLOCK_PIXELS: tl.constexpr, INDEX: tl.constexpr
):
    """Of the tiles of all images and groups the one of that number."""
    image, pixel, mask = pixel_tile(number // GROUPS, pixels, BLOCK_PIXELS, INDEX)
    return image, number % GROUPS, pixel, mask


@triton.jit
def _shifted(pixel, mask, down, right, Y, X):
    """Pixels so many rows and columns on, and which of them exist."""
    row, column = pixel // X + down, pixel % X + right
    inside = mask & (row >= 0) & (row < Y) & (column >= 0) & (column < X)
    return pixel + down * X + right, inside


@triton.jit
def _standardized_features(
    query, depthwise, image, group, pixel, mask, channel, channel_mask, Y, X,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    EPSILON: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Of the depthwise convolution: (P, channels), and what scaled each pixel."""
    features = tl.zeros((pixel.shape[0], channel.shape[0]), COMPUTE)
    for tap in tl.static_range(9):
        neighbour, inside = _shifted(pixel, mask, tap // 3 - 1, tap % 3 - 1, Y, X)
        tile = load_tile(
            query, image, neighbour, inside, group * CHANNELS + channel, channel_mask,
            Y * X, GROUPS * CHANNELS, CHANNELS_LAST,
        ).to(COMPUTE)  # fmt: skip
        features += tile * load_row(depthwise, channel * 9 + tap, channel_mask, COMPUTE)
    standardized, _, inverse = standardize(features, channel_mask, CHANNELS, EPSILON)
    return standardized, inverse


@triton.jit
def _normal_cdf(x):
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit(do_not_specialize=SIZES)
def hidden_kernel(
    query, depthwise, norm_weight, norm_bias, hidden, Y, X,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    EPSILON: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """What the last convolution reads."""
    image, group, pixel, mask = _group_tile(tl.program_id(0), Y * X, GROUPS, BLOCK_PIXELS, INDEX)
    channel = tl.arange(0, BLOCK_CHANNELS)
    channel_mask = channel < CHANNELS
    standardized, _ = _standardized_features(
        query, depthwise, image, group, pixel, mask, channel, channel_mask, Y, X,
        GROUPS, CHANNELS, CHANNELS_LAST, EPSILON, COMPUTE,
    )  # fmt: skip
    normalized = standardized * load_row(norm_weight, channel, channel_mask, COMPUTE)
    normalized += load_row(norm_bias, channel, channel_mask, COMPUTE)
    store_tile(
        hidden, normalized * _normal_cdf(normalized), image, pixel, mask,
        group * CHANNELS + channel, channel_mask, Y * X, GROUPS * CHANNELS, True,
    )  # fmt: skip


@triton.jit
def _tanh(x):
    tail = tl.exp(-2 * tl.abs(x))
    size = (1 - tail) / (1 + tail)
    return tl.where(x < 0, -size, size)


@triton.jit(do_not_specialize=SIZES)
def offsets_kernel(
    hidden, conv_weight, conv_bias, offsets, Y, X,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, KERNEL: tl.constexpr,
    OFFSET_RANGE: tl.constexpr, COMPUTE: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr,
):  # fmt: skip
    """The offsets: the last convolution, and tanh."""
    image, group, pixel, mask = _group_tile(tl.program_id(0), Y * X, GROUPS, BLOCK_PIXELS, INDEX)
    channel, output = tl.arange(0, BLOCK_CHANNELS), tl.arange(0, BLOCK_OUTPUTS)
    channel_mask, output_mask = channel < CHANNELS, output < OUTPUTS
    predicted = tl.zeros((BLOCK_PIXELS, BLOCK_OUTPUTS), COMPUTE)
    for tap in range(KERNEL * KERNEL):
        down, right = tap // KERNEL - KERNEL // 2, tap % KERNEL - KERNEL // 2
        neighbour, inside = _shifted(pixel, mask, down, right, Y, X)
        tile = load_tile(
            hidden, image, neighbour, inside, group * CHANNELS + channel, channel_mask,
            Y * X, GROUPS * CHANNELS, True,
        )  # fmt: skip
        matrix = tl.load(
            conv_weight + (output[None, :] * CHANNELS + channel[:, None]) * (KERNEL * KERNEL) + tap,
            mask=channel_mask[:, None] & output_mask[None, :],
            other=0,
        )
        predicted = add_product(predicted, tile, matrix.to(DOT), PRECISION)
    predicted += load_row(conv_bias, output, output_mask, COMPUTE)
    store_tile(
        offsets, OFFSET_RANGE * _tanh(predicted), image, pixel, mask, group * OUTPUTS + output,
        output_mask, Y * X, GROUPS * OUTPUTS, False,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def tanh_backward_kernel(
    grad_offsets, offsets, grad_predicted, Y, X,
    GROUPS: tl.constexpr, OUTPUTS: tl.constexpr, OFFSET_RANGE: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr,
):  # fmt: skip
    """The gradient of what tanh is given, (N, Y, X, GROUPS BLOCK_OUTPUTS), 0 beyond OUTPUTS."""
    image, group, pixel, mask = _group_tile(tl.program_id(0), Y * X, GROUPS, BLOCK_PIXELS, INDEX)
    output = tl.arange(0, BLOCK_OUTPUTS)
    place = (image, pixel, mask, group * OUTPUTS + output, output < OUTPUTS, Y * X)
    grad = load_tile(grad_offsets, *place, GROUPS * OUTPUTS, False)
    if OFFSET_RANGE == 0:
        grad *= 0
    else:
        # tanh' is 1 - tanh², and the offsets have tanh.
        offset = load_tile(offsets, *place, GROUPS * OUTPUTS, False)
        grad *= OFFSET_RANGE - offset * offset / OFFSET_RANGE
    store_tile(
        grad_predicted, grad, image, pixel, mask, group * BLOCK_OUTPUTS + output,
        output < BLOCK_OUTPUTS, Y * X, GROUPS * BLOCK_OUTPUTS, True,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def hidden_backward_kernel(
    grad_predicted, query, depthwise, norm_weight, norm_bias, conv_weight,
    hidden, grad_features, grad_norm_weight, grad_norm_bias, grad_conv_bias, images, Y, X,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, KERNEL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, EPSILON: tl.constexpr, PARAMETERS: tl.constexpr,
    COMPUTE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr,
):  # fmt: skip
    """Back to the features, by some of the tiles; the hidden map anew.

    Gradients of parameters are sums over these tiles, in a row of PARAMETERS numbers.
    """
    channel, output = tl.arange(0, BLOCK_CHANNELS), tl.arange(0, BLOCK_OUTPUTS)
    channel_mask, output_mask = channel < CHANNELS, output < OUTPUTS
    scale = load_row(norm_weight, channel, channel_mask, COMPUTE)
    shift = load_row(norm_bias, channel, channel_mask, COMPUTE)
    sum_scale = tl.zeros((BLOCK_CHANNELS,), COMPUTE)
    sum_shift = tl.zeros((BLOCK_CHANNELS,), COMPUTE)
    sum_bias = tl.zeros((BLOCK_OUTPUTS,), COMPUTE)
    tiles = images * GROUPS * tl.cdiv(Y * X, BLOCK_PIXELS)
    for number in range(tl.program_id(0), tiles, tl.num_programs(0)):
        image, group, pixel, mask = _group_tile(number, Y * X, GROUPS, BLOCK_PIXELS, INDEX)
        outputs = group * BLOCK_OUTPUTS + output
        grad = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), COMPUTE)
        for tap in range(KERNEL * KERNEL):
            down, right = tap // KERNEL - KERNEL // 2, tap % KERNEL - KERNEL // 2
            neighbour, inside = _shifted(pixel, mask, -down, -right, Y, X)
            rows = load_tile(
                grad_predicted, image, neighbour, inside, outputs, output_mask,
                Y * X, GROUPS * BLOCK_OUTPUTS, True,
            )  # fmt: skip
            matrix = tl.load(
                conv_weight
                + (output[:, None] * CHANNELS + channel[None, :]) * (KERNEL * KERNEL)
                + tap,
                mask=output_mask[:, None] & channel_mask[None, :],
                other=0,
            )
            grad = add_product(grad, rows, matrix.to(DOT), PRECISION)
        rows = load_tile(
            grad_predicted, image, pixel, mask, outputs, output_mask,
            Y * X, GROUPS * BLOCK_OUTPUTS, True,
        )  # fmt: skip
        sum_bias += tl.sum(rows.to(COMPUTE), axis=0)

        standardized, inverse = _standardized_features(
            query, depthwise, image, group, pixel, mask, channel, channel_mask, Y, X,
            GROUPS, CHANNELS, CHANNELS_LAST, EPSILON, COMPUTE,
        )  # fmt: skip
        normalized = standardized * scale + shift
        cdf = _normal_cdf(normalized)
        density = 0.3989422804014327 * tl.exp(-0.5 * normalized * normalized)
        grad *= cdf + normalized * density
        # Of pixels beyond the map too, but with gradients of zero.
        sum_scale += tl.sum(grad * standardized, axis=0)
        sum_shift += tl.sum(grad, axis=0)
        grad = standardize_backward(grad * scale, standardized, inverse, CHANNELS)
        place = (image, pixel, mask, group * CHANNELS + channel, channel_mask, Y * X)
        store_tile(hidden, normalized * cdf, *place, GROUPS * CHANNELS, True)
        store_tile(grad_features, grad, *place, GROUPS * CHANNELS, True)
    row = tl.program_id(0) * PARAMETERS
    tl.store(grad_norm_weight + row + channel, sum_scale, mask=channel_mask)
    tl.store(grad_norm_bias + row + channel, sum_shift, mask=channel_mask)
    tl.store(grad_conv_bias + row + output, sum_bias, mask=output_mask)


@triton.jit(do_not_specialize=SIZES)
def conv_weight_backward_kernel(
    grad_predicted, hidden, grad_conv_weight, images, Y, X,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, KERNEL: tl.constexpr,
    PARAMETERS: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient of the last convolution's weight, summed over some of the tiles.

    Its columns are the taps of the convolution, with BLOCK_CHANNELS channels for each; a program
    has BLOCK_COLUMNS of them.
    """
    output = tl.arange(0, BLOCK_OUTPUTS)
    output_mask = output < OUTPUTS
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    tap, channel = column // BLOCK_CHANNELS, column % BLOCK_CHANNELS
    column_mask = (tap < KERNEL * KERNEL) & (channel < CHANNELS)
    down, right = tap // KERNEL - KERNEL // 2, tap % KERNEL - KERNEL // 2
    total = tl.zeros((BLOCK_OUTPUTS, BLOCK_COLUMNS), COMPUTE)
    tiles = images * GROUPS * tl.cdiv(Y * X, BLOCK_PIXELS)
    for number in range(tl.program_id(0), tiles, tl.num_programs(0)):
        image, group, pixel, mask = _group_tile(number, Y * X, GROUPS, BLOCK_PIXELS, INDEX)
        rows = load_tile(
            grad_predicted, image, pixel, mask, group * BLOCK_OUTPUTS + output, output_mask,
            Y * X, GROUPS * BLOCK_OUTPUTS, True,
        )  # fmt: skip
        neighbour, inside = _shifted(
            pixel[:, None], mask[:, None], down[None, :], right[None, :], Y, X
        )
        place = (image * (Y * X) + neighbour) * (GROUPS * CHANNELS)
        place += group * CHANNELS + channel[None, :]
        tile = tl.load(hidden + place, mask=inside & column_mask[None, :], other=0)
        total = add_product(total, tl.trans(rows), tile, PRECISION)
    place = (output[:, None] * CHANNELS + channel[None, :]) * (KERNEL * KERNEL) + tap[None, :]
    tl.store(
        grad_conv_weight + tl.program_id(0) * PARAMETERS + place,
        total,
        mask=output_mask[:, None] & column_mask[None, :],
    )


@triton.jit(do_not_specialize=SIZES)
def query_backward_kernel(
    grad_features, grad_resized, query, depthwise, grad_query, grad_depthwise, images, Y, X,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    GRAD_CHANNELS_LAST: tl.constexpr, PARAMETERS: tl.constexpr, COMPUTE: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """From the features back to the query, by some of the tiles.

    ``grad_resized``, or None, is the gradient that the query has from elsewhere. That of the
    depthwise weights is summed over these tiles.
    """
    channel, taps = tl.arange(0, BLOCK_CHANNELS), tl.arange(0, 16)
    channel_mask = channel < CHANNELS
    sums = tl.zeros((16, BLOCK_CHANNELS), COMPUTE)
    tiles = images * GROUPS * tl.cdiv(Y * X, BLOCK_PIXELS)
    for number in range(tl.program_id(0), tiles, tl.num_programs(0)):
        image, group, pixel, mask = _group_tile(number, Y * X, GROUPS, BLOCK_PIXELS, INDEX)
        channels = group * CHANNELS + channel
        place = (image, pixel, mask, channels, channel_mask, Y * X)
        values = load_tile(query, *place, GROUPS * CHANNELS, CHANNELS_LAST).to(COMPUTE)
        if grad_resized is None:
            grad = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), COMPUTE)
        else:
            grad = load_tile(
                grad_resized, *place, GROUPS * CHANNELS, GRAD_CHANNELS_LAST
            ).to(COMPUTE)  # fmt: skip
        for tap in tl.static_range(9):
            neighbour, inside = _shifted(pixel, mask, 1 - tap // 3, 1 - tap % 3, Y, X)
            tile = load_tile(
                grad_features, image, neighbour, inside, channels, channel_mask,
                Y * X, GROUPS * CHANNELS, True,
            ).to(COMPUTE)  # fmt: skip
            grad += tile * load_row(depthwise, channel * 9 + tap, channel_mask, COMPUTE)
            share = tl.sum(tile * values, axis=0)
            sums += tl.where(taps[:, None] == tap, share[None, :], 0.0)
        store_tile(grad_query, grad, *place, GROUPS * CHANNELS, CHANNELS_LAST)
    tl.store(
        grad_depthwise + tl.program_id(0) * PARAMETERS + channel[None, :] * 9 + taps[:, None],
        sums,
        mask=(taps < 9)[:, None] & channel_mask[None, :],
    )
