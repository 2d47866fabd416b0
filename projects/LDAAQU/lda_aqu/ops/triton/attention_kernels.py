"""Triton kernels of local deformable attention; :mod:`.attention` launches them.

Layout, for all kernels:
    What is read by channels (query, key, value, gradient of the output) is dense and channels-last.
    What has the format of the value is written through a stride of the channels and one of the
    pixels; other results are dense.
    Heads and groups cut the channels in different places. SLICES, the least common multiple of both
    numbers, cuts them so that a slice lies in one head and in one group; KEY_WIDTH and VALUE_WIDTH
    are the channels of a slice.
    Attention maps are (N, HEADS, POINTS, Y * X), offsets (N, GROUPS, POINTS, 2, Y * X).

Shape shorthand:
    N: batch; H, W: input size; Y, X: output size
"""

# What is known when a kernel is compiled, and the sizes, are in capitals.
# ruff: noqa: N803, N806

import triton
import triton.language as tl

# The sizes of maps change from image to image: no kernel is compiled anew for them.
SIZES = ("H", "W", "Y", "X")


def _pixel_tiles(*tiles: tuple[int, int]) -> list[triton.Config]:
    """Configurations of (pixels of a program, warps)."""
    return [triton.Config({"BLOCK_PIXELS": n}, num_warps=warps) for n, warps in tiles]


@triton.jit
def _step(input_size, output_size, COMPUTE: tl.constexpr):
    """Input pixels for each output pixel; 0 where the output has size 1."""
    span = tl.where(output_size > 1, input_size - 1, 0)
    return (span.to(tl.float64) / tl.maximum(output_size - 1, 1)).to(COMPUTE)


@triton.jit
def _geometry(H, W, Y, X, COMPUTE: tl.constexpr):
    """The sizes, and how many input pixels an output pixel is high and wide."""
    return H, W, Y, X, _step(H, Y, COMPUTE), _step(W, X, COMPUTE)


@triton.jit
def _position(
    offsets, group, point, pixel, mask, geometry, POINTS: tl.constexpr, COMPUTE: tl.constexpr
):
    """Where ``point`` of ``pixel`` is read, (y, x) in input pixels. Groups count over the batch."""
    _, _, Y, X, step_y, step_x = geometry
    SIDE: tl.constexpr = int(POINTS**0.5)
    plane = offsets + (group * POINTS + point) * 2 * (Y * X) + pixel
    dy = tl.load(plane, mask=mask, other=0).to(COMPUTE)
    dx = tl.load(plane + Y * X, mask=mask, other=0).to(COMPUTE)
    row = pixel // X + (point // SIDE - SIDE // 2)
    column = pixel % X + (point % SIDE - SIDE // 2)
    return (dy + row) * step_y, (dx + column) * step_x


@triton.jit
def _cell(y, x, geometry):
    """The cell that holds (y, x): row and column of its first corner, and whether it has any.

    Cells that touch the map begin at -1. The comparisons are false for NaN: nothing that no integer
    can hold is made one.
    """
    H, W, _, _, _, _ = geometry
    inside = (y >= -1) & (y < H) & (x >= -1) & (x < W)
    row = tl.floor(tl.where(inside, y, 0.0))
    column = tl.floor(tl.where(inside, x, 0.0))
    return row.to(tl.int32), column.to(tl.int32), inside


@triton.jit
def _load_rows(
    source, index, mask, channel, channel_mask, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr
):
    """Channels of the positions ``index``: (positions, channels), 0 where masked."""
    address = source + index[:, None] * CHANNELS + channel[None, :]
    return tl.load(address, mask=mask[:, None] & channel_mask[None, :], other=0).to(COMPUTE)


@triton.jit
def _load_corners(
    source, offsets, group, point, pixel, pixel_mask, channel, channel_mask, geometry,
    POINTS: tl.constexpr, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Channels of the four corners around where ``point`` is read, row by row; 0 off the map.

    Each is (pixels, channels). Then the fractions of the way, in y and x, from the first corner.
    """
    H, W, _, _, _, _ = geometry
    y, x = _position(offsets, group, point, pixel, pixel_mask, geometry, POINTS, COMPUTE)
    row, column, inside = _cell(y, x, geometry)
    # A coordinate less itself is 0, but NaN for NaN and infinity, which propagate.
    fraction_y = tl.where(inside, y - row, y - y)
    fraction_x = tl.where(inside, x - column, x - x)
    above, below = inside & (row >= 0), inside & (row + 1 < H)
    left, right = column >= 0, column + 1 < W
    i = row.to(pixel.dtype) * W + column
    return (
        _load_rows(source, i, above & left, channel, channel_mask, CHANNELS, COMPUTE),
        _load_rows(source, i + 1, above & right, channel, channel_mask, CHANNELS, COMPUTE),
        _load_rows(source, i + W, below & left, channel, channel_mask, CHANNELS, COMPUTE),
        _load_rows(source, i + W + 1, below & right, channel, channel_mask, CHANNELS, COMPUTE),
        fraction_y,
        fraction_x,
    )


@triton.jit
def _interpolate(c00, c01, c10, c11, fraction_y, fraction_x):
    """Bilinear interpolation between four corners."""
    above = c00 * (1 - fraction_x) + c01 * fraction_x
    below = c10 * (1 - fraction_x) + c11 * fraction_x
    return above * (1 - fraction_y) + below * fraction_y


@triton.jit
def _interpolate_products(upstream, c00, c01, c10, c11, fraction_y, fraction_x):
    """Sum over the channels of upstream * interpolated, and its derivatives by y and x.

    Each is (pixels,). Interpolation is linear: the products with the corners are all it takes.
    """
    d00, d01 = tl.sum(upstream * c00, axis=1), tl.sum(upstream * c01, axis=1)
    d10, d11 = tl.sum(upstream * c10, axis=1), tl.sum(upstream * c11, axis=1)
    return (
        _interpolate(d00, d01, d10, d11, fraction_y, fraction_x),
        (d10 - d00) * (1 - fraction_x) + (d11 - d01) * fraction_x,
        (d01 - d00) * (1 - fraction_y) + (d11 - d10) * fraction_y,
    )


@triton.jit
def _load_bias(
    bias, head, point, channel, mask,
    POINTS: tl.constexpr, HEAD_DEPTH: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Bias of the keys, (1, channels), 0 where there is none; channels count within the head."""
    if bias is None:
        return tl.zeros((1, channel.shape[0]), COMPUTE)
    else:
        address = bias + (head * POINTS + point) * HEAD_DEPTH + channel
        return tl.load(address, mask=mask, other=0).to(COMPUTE)[None, :]


@triton.jit
def _select(table, index, which):
    """Column ``which`` of a table (pixels, columns); ``index`` counts the columns."""
    return tl.sum(tl.where(index[None, :] == which, table, 0.0), axis=1)


@triton.jit
def _place(column, index, which):
    """A table that is zero but for ``column``, which it has at ``which``."""
    return tl.where(index[None, :] == which, column[:, None], 0.0)


@triton.jit
def _program(geometry, HEADS: tl.constexpr, BLOCK_PIXELS: tl.constexpr, INDEX: tl.constexpr):
    """What a program over pixels works on: batch, head, pixels and which of these exist."""
    _, _, Y, X, _, _ = geometry
    blocks = tl.cdiv(Y * X, BLOCK_PIXELS)
    program = tl.program_id(0)
    pixel = (program % blocks) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    batch = (program // blocks // HEADS).to(INDEX)
    head = program // blocks % HEADS
    return batch, head, pixel.to(INDEX), pixel < Y * X


@triton.jit
def _attention(
    query, key, offsets, bias, batch, head, pixel, pixel_mask, geometry,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, SLICES: tl.constexpr, POINTS: tl.constexpr,
    KEY_WIDTH: tl.constexpr, SCALE: tl.constexpr,
    POINT_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Softmax over the points: (pixels, POINT_BLOCK), zero beyond POINTS."""
    H, W, Y, X, _, _ = geometry
    HEAD_SLICES: tl.constexpr = SLICES // HEADS
    DEPTH: tl.constexpr = SLICES * KEY_WIDTH
    points = tl.arange(0, POINT_BLOCK)
    logits = tl.zeros((pixel.shape[0], POINT_BLOCK), COMPUTE)
    for local in range(HEAD_SLICES):
        piece = head * HEAD_SLICES + local
        group = batch * GROUPS + piece // (SLICES // GROUPS)
        queries = query + batch * (Y * X) * DEPTH + piece * KEY_WIDTH
        keys = key + batch * (H * W) * DEPTH + piece * KEY_WIDTH
        for start in range(0, KEY_WIDTH, KEY_BLOCK):
            channel = start + tl.arange(0, KEY_BLOCK)
            mask = channel < KEY_WIDTH
            q = _load_rows(queries, pixel, pixel_mask, channel, mask, DEPTH, COMPUTE)
            for point in range(POINTS):
                c00, c01, c10, c11, fy, fx = _load_corners(
                    keys, offsets, group, point, pixel, pixel_mask, channel, mask, geometry,
                    POINTS, DEPTH, COMPUTE,
                )  # fmt: skip
                k = _interpolate(c00, c01, c10, c11, fy[:, None], fx[:, None]) + _load_bias(
                    bias, head, point, local * KEY_WIDTH + channel, mask,
                    POINTS, DEPTH // HEADS, COMPUTE,
                )  # fmt: skip
                logits += _place(tl.sum(q * k, axis=1), points, point)
    logits = tl.where(points[None, :] < POINTS, logits * SCALE, float("-inf"))
    weights = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    return weights / tl.sum(weights, axis=1)[:, None]


@triton.autotune(
    configs=_pixel_tiles((16, 4), (8, 2), (16, 8), (32, 4), (32, 8), (64, 4)),
    key=["KEY_WIDTH", "VALUE_WIDTH", "POINTS"],
)
@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    query, key, value, offsets, bias, output, channel_stride, pixel_stride, H, W, Y, X,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, SLICES: tl.constexpr, POINTS: tl.constexpr,
    KEY_WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, SCALE: tl.constexpr,
    POINT_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr, INDEX: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    """The output of a block of pixels and one head."""
    geometry = _geometry(H, W, Y, X, COMPUTE)
    HEAD_SLICES: tl.constexpr = SLICES // HEADS
    CHANNELS: tl.constexpr = SLICES * VALUE_WIDTH
    batch, head, pixel, pixel_mask = _program(geometry, HEADS, BLOCK_PIXELS, INDEX)
    attention = _attention(
        query, key, offsets, bias, batch, head, pixel, pixel_mask, geometry,
        HEADS, GROUPS, SLICES, POINTS, KEY_WIDTH, SCALE, POINT_BLOCK, KEY_BLOCK, COMPUTE,
    )  # fmt: skip
    points = tl.arange(0, POINT_BLOCK)
    for local in range(HEAD_SLICES):
        piece = head * HEAD_SLICES + local
        group = batch * GROUPS + piece // (SLICES // GROUPS)
        values = value + batch * (H * W) * CHANNELS + piece * VALUE_WIDTH
        for start in range(0, VALUE_WIDTH, VALUE_BLOCK):
            channel = start + tl.arange(0, VALUE_BLOCK)
            mask = channel < VALUE_WIDTH
            total = tl.zeros((BLOCK_PIXELS, VALUE_BLOCK), COMPUTE)
            for point in range(POINTS):
                c00, c01, c10, c11, fy, fx = _load_corners(
                    values, offsets, group, point, pixel, pixel_mask, channel, mask, geometry,
                    POINTS, CHANNELS, COMPUTE,
                )  # fmt: skip
                v = _interpolate(c00, c01, c10, c11, fy[:, None], fx[:, None])
                total += _select(attention, points, point)[:, None] * v
            address = output + batch * (Y * X) * CHANNELS + pixel[:, None] * pixel_stride
            address += (piece * VALUE_WIDTH + channel).to(INDEX)[None, :] * channel_stride
            tl.store(address, total, mask=pixel_mask[:, None] & mask[None, :])


@triton.autotune(
    configs=_pixel_tiles((16, 4), (8, 2), (8, 4), (16, 8), (32, 8), (64, 8)),
    key=["KEY_WIDTH", "VALUE_WIDTH", "POINTS"],
)
@triton.jit(do_not_specialize=SIZES)
def backward_pixels_kernel(
    grad_output, query, key, value, offsets, bias, attention_map, grad_logits_map,
    grad_offsets, grad_query, H, W, Y, X,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, SLICES: tl.constexpr, POINTS: tl.constexpr,
    KEY_WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, SCALE: tl.constexpr,
    POINT_BLOCK: tl.constexpr, SLOT_BLOCK: tl.constexpr,
    KEY_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr, INDEX: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    """The gradients that belong to a block of pixels and one head: of its queries and offsets.

    Writes what the other gradients need, too: the attention, and the gradient of q . (k + b). The
    gradient of the offsets is the share of each slice, (N, SLICES, POINTS, 2, Y * X).
    """
    geometry = _geometry(H, W, Y, X, COMPUTE)
    HEAD_SLICES: tl.constexpr = SLICES // HEADS
    DEPTH: tl.constexpr = SLICES * KEY_WIDTH
    CHANNELS: tl.constexpr = SLICES * VALUE_WIDTH
    batch, head, pixel, pixel_mask = _program(geometry, HEADS, BLOCK_PIXELS, INDEX)
    attention = _attention(
        query, key, offsets, bias, batch, head, pixel, pixel_mask, geometry,
        HEADS, GROUPS, SLICES, POINTS, KEY_WIDTH, SCALE, POINT_BLOCK, KEY_BLOCK, COMPUTE,
    )  # fmt: skip
    points = tl.arange(0, POINT_BLOCK)
    slots = tl.arange(0, SLOT_BLOCK)  # the points of all slices of the head
    grad_attention = tl.zeros((BLOCK_PIXELS, POINT_BLOCK), COMPUTE)
    grad_y = tl.zeros((BLOCK_PIXELS, SLOT_BLOCK), COMPUTE)
    grad_x = tl.zeros((BLOCK_PIXELS, SLOT_BLOCK), COMPUTE)

    for local in range(HEAD_SLICES):
        piece = head * HEAD_SLICES + local
        group = batch * GROUPS + piece // (SLICES // GROUPS)
        grads = grad_output + batch * (Y * X) * CHANNELS + piece * VALUE_WIDTH
        values = value + batch * (H * W) * CHANNELS + piece * VALUE_WIDTH
        for start in range(0, VALUE_WIDTH, VALUE_BLOCK):
            channel = start + tl.arange(0, VALUE_BLOCK)
            mask = channel < VALUE_WIDTH
            g = _load_rows(grads, pixel, pixel_mask, channel, mask, CHANNELS, COMPUTE)
            for point in range(POINTS):
                c00, c01, c10, c11, fy, fx = _load_corners(
                    values, offsets, group, point, pixel, pixel_mask, channel, mask, geometry,
                    POINTS, CHANNELS, COMPUTE,
                )  # fmt: skip
                product, by_y, by_x = _interpolate_products(g, c00, c01, c10, c11, fy, fx)
                weight = _select(attention, points, point)
                grad_attention += _place(product, points, point)
                grad_y += _place(weight * by_y, slots, local * POINTS + point)
                grad_x += _place(weight * by_x, slots, local * POINTS + point)

    mean = tl.sum(attention * grad_attention, axis=1)
    grad_logits = attention * (grad_attention - mean[:, None]) * SCALE
    entry = ((batch * HEADS + head) * POINTS + points[None, :]) * (Y * X) + pixel[:, None]
    entry_mask = pixel_mask[:, None] & (points[None, :] < POINTS)
    tl.store(attention_map + entry, attention, mask=entry_mask)
    tl.store(grad_logits_map + entry, grad_logits, mask=entry_mask)

    for local in range(HEAD_SLICES):
        piece = head * HEAD_SLICES + local
        group = batch * GROUPS + piece // (SLICES // GROUPS)
        queries = query + batch * (Y * X) * DEPTH + piece * KEY_WIDTH
        keys = key + batch * (H * W) * DEPTH + piece * KEY_WIDTH
        for start in range(0, KEY_WIDTH, KEY_BLOCK):
            channel = start + tl.arange(0, KEY_BLOCK)
            mask = channel < KEY_WIDTH
            q = _load_rows(queries, pixel, pixel_mask, channel, mask, DEPTH, COMPUTE)
            total = tl.zeros((BLOCK_PIXELS, KEY_BLOCK), COMPUTE)
            for point in range(POINTS):
                c00, c01, c10, c11, fy, fx = _load_corners(
                    keys, offsets, group, point, pixel, pixel_mask, channel, mask, geometry,
                    POINTS, DEPTH, COMPUTE,
                )  # fmt: skip
                _, by_y, by_x = _interpolate_products(q, c00, c01, c10, c11, fy, fx)
                weight = _select(grad_logits, points, point)
                grad_y += _place(weight * by_y, slots, local * POINTS + point)
                grad_x += _place(weight * by_x, slots, local * POINTS + point)
                k = _interpolate(c00, c01, c10, c11, fy[:, None], fx[:, None]) + _load_bias(
                    bias, head, point, local * KEY_WIDTH + channel, mask,
                    POINTS, DEPTH // HEADS, COMPUTE,
                )  # fmt: skip
                total += weight[:, None] * k
            address = grad_query + batch * (Y * X) * DEPTH + piece * KEY_WIDTH
            address += pixel[:, None] * DEPTH + channel[None, :]
            tl.store(address, total, mask=pixel_mask[:, None] & mask[None, :])

    _, _, _, _, step_y, step_x = geometry
    plane = (batch * HEADS + head) * HEAD_SLICES * POINTS + slots[None, :]
    shares = grad_offsets + plane * 2 * (Y * X) + pixel[:, None]
    slot_mask = pixel_mask[:, None] & (slots[None, :] < HEAD_SLICES * POINTS)
    tl.store(shares, grad_y * step_y, mask=slot_mask)
    tl.store(shares + Y * X, grad_x * step_x, mask=slot_mask)


@triton.jit(do_not_specialize=SIZES)
def cells_kernel(
    offsets, cells, num_samples, H, W, Y, X,
    POINTS: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr, BLOCK_SAMPLES: tl.constexpr,
):  # fmt: skip
    """The number of the cell that each sample lies in, int32 (N, GROUPS, POINTS, Y * X).

    Cells are numbered row by row from the one that begins at (-1, -1), W + 1 in a row. Samples
    whose cell has no corner on the map have the number after the last.
    """
    geometry = _geometry(H, W, Y, X, COMPUTE)
    sample = tl.program_id(0).to(INDEX) * BLOCK_SAMPLES + tl.arange(0, BLOCK_SAMPLES)
    mask = sample < num_samples
    plane, pixel = sample // (Y * X), sample % (Y * X)
    y, x = _position(
        offsets, plane // POINTS, plane % POINTS, pixel, mask, geometry, POINTS, COMPUTE
    )  # fmt: skip
    row, column, inside = _cell(y, x, geometry)
    number = tl.where(inside, (row + 1) * (W + 1) + column + 1, (H + 1) * (W + 1))
    tl.store(cells + sample, number, mask=mask)


@triton.autotune(
    configs=[
        triton.Config({"BLOCK_SAMPLES": samples}, num_warps=warps)
        for samples, warps in ((16, 2), (16, 1), (16, 4), (32, 2), (32, 4), (64, 4))
    ],
    key=["WIDTH", "POINTS"],
)
@triton.jit(do_not_specialize=SIZES)
def backward_source_kernel(
    coefficients, upstream, offsets, samples, cell_starts,
    grad_source, channel_stride, pixel_stride, H, W, Y, X,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, SLICES: tl.constexpr, POINTS: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr, INDEX: tl.constexpr, BLOCK_SAMPLES: tl.constexpr,
):  # fmt: skip
    """The gradient of a block of channels of the key, or the value, at one position of the map.

    Gathers from the samples in the four cells around the position: ``samples`` lists those of each
    group by the numbers of their cells, and ``cell_starts`` says where each cell begins in the
    list. A sample passes on ``upstream`` at its pixel times its coefficient: for the value the
    gradient of the output and the attention, for the key the query and the gradient of the logits.
    """
    geometry = _geometry(H, W, Y, X, COMPUTE)
    CHANNELS: tl.constexpr = SLICES * WIDTH
    BLOCKS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    position = tl.program_id(0) % (H * W)
    program = tl.program_id(0) // (H * W)
    channel = program % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    mask = channel < WIDTH
    piece = program // BLOCKS % SLICES
    batch = (program // BLOCKS // SLICES).to(INDEX)
    group = batch * GROUPS + piece // (SLICES // GROUPS)
    head = batch * HEADS + piece // (SLICES // HEADS)
    row, column = position // W, position % W

    samples += group * POINTS * (Y * X)
    coefficients += head * POINTS * (Y * X)
    upstream += batch * (Y * X) * CHANNELS + piece * WIDTH
    cell_starts += group * ((H + 1) * (W + 1) + 1) + row * (W + 1) + column
    total = tl.zeros((BLOCK,), COMPUTE)
    for below in range(2):
        # The cells to the left and the right of the position follow one another in the list.
        first = cell_starts + below * (W + 1)
        end = tl.load(first + 2)
        for start in range(tl.load(first), end, BLOCK_SAMPLES):
            entry = start + tl.arange(0, BLOCK_SAMPLES)
            entry_mask = entry < end
            sample = tl.load(samples + entry, mask=entry_mask, other=0).to(INDEX)
            point, pixel = sample // (Y * X), sample % (Y * X)
            y, x = _position(offsets, group, point, pixel, entry_mask, geometry, POINTS, COMPUTE)
            weight = (1 - tl.abs(y - row)) * (1 - tl.abs(x - column))
            weight *= tl.load(coefficients + sample, mask=entry_mask, other=0)
            weight = tl.where(entry_mask, weight, 0.0)
            rows = _load_rows(upstream, pixel, entry_mask, channel, mask, CHANNELS, COMPUTE)
            total += tl.sum(weight[:, None] * rows, axis=0)
    address = grad_source + batch * (H * W) * CHANNELS + position.to(INDEX) * pixel_stride
    address += (piece * WIDTH + channel).to(INDEX) * channel_stride
    tl.store(address, total, mask=mask)
