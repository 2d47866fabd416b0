"""Triton kernels of local deformable attention; :mod:`.attention` launches them.

What decides is how often rows of channels are read: 4 corners for each pixel and point. So a row
comes as CHUNK_BYTES of neighbouring channels to each group of lanes, 16 to a lane, and tiles are
(chunks of channels, pixels, channels of a chunk): 8 lanes share a pixel, each holds that pixel's
part of all chunks, and what is computed of a pixel alone (coordinates, weights) is computed 8 times
over, not once by each lane of a warp. A program takes a square of pixels, which read the same
rows: these come from the L1 cache.

Layout, for all kernels:
    Query, key and value are dense and channels-last.
    The output, its gradient and that of the value are dense, channels-last or contiguous as said.
    Heads and groups cut the channels in different places. SLICES, the least common multiple of both
    numbers, cuts them so that a slice lies in one head and in one group; KEY_WIDTH and VALUE_WIDTH
    are the channels of a slice, KEY_PADDED and VALUE_PADDED the powers of 2 that hold them.
    Offsets are (N, GROUPS, POINTS, 2, Y * X). Samples, the points of all pixels, are numbered by
    pixels first: attention is (N, HEADS, Y * X, POINTS), positions (N, GROUPS, Y * X, POINTS, 2).

Shape shorthand:
    N: batch; H, W: input size; Y, X: output size
"""

# What is known when a kernel is compiled, and the sizes, are in capitals.
# ruff: noqa: N803, N806

import triton
import triton.language as tl

from .tiles import LANES_TAKE_AXIS_0

# The sizes of maps change from image to image: no kernel is compiled anew for them.
SIZES = ("H", "W", "Y", "X")


@triton.jit
def _step(input_size, output_size, COMPUTE: tl.constexpr):
    """Input pixels for each output pixel; 0 where the output has size 1."""
    span = tl.where(output_size > 1, input_size - 1, 0).to(COMPUTE)
    steps = tl.maximum(output_size - 1, 1).to(COMPUTE)
    if COMPUTE == tl.float64:  # noqa: SIM300
        return span / steps
    else:
        return tl.div_rn(span, steps)


@triton.jit
def _geometry(H, W, Y, X, COMPUTE: tl.constexpr):
    """The sizes, and how many input pixels an output pixel is high and wide."""
    return H, W, Y, X, _step(H, Y, COMPUTE), _step(W, X, COMPUTE)


@triton.jit
def _tile(
    geometry, HEADS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INDEX: tl.constexpr
):
    """What a program over pixels works on: batch, head and pixels.

    Pixels are rows, columns, numbers and which of them exist, each (ROWS * COLUMNS,).
    """
    _, _, Y, X, _, _ = geometry
    across = tl.cdiv(X, COLUMNS)
    tiles = across * tl.cdiv(Y, ROWS)
    tile = tl.program_id(0) % tiles
    head = tl.program_id(0) // tiles % HEADS
    batch = tl.program_id(0) // tiles // HEADS
    i = tl.arange(0, ROWS * COLUMNS)
    row = tile // across * ROWS + i // COLUMNS
    column = tile % across * COLUMNS + i % COLUMNS
    pixels = row, column, row.to(INDEX) * X + column, (row < Y) & (column < X)
    return batch.to(INDEX), head, pixels


@triton.jit
def _channels(start, WIDTH: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr):
    """Channels from ``start`` on, (chunks, 1, channels of a chunk), and which of them exist.

    Chunks have ``FULL`` channels, or as many as there are in a block.
    """
    CHUNK: tl.constexpr = FULL if FULL < BLOCK else BLOCK
    chunk = tl.arange(0, BLOCK // CHUNK)[:, None, None]
    channel = start + chunk * CHUNK + tl.arange(0, CHUNK)[None, None, :]
    return channel, channel < WIDTH


@triton.jit
def _load_rows(source, index, mask, channels, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr):
    """Channels of the positions ``index``: (chunks, positions, channels), 0 where masked."""
    channel, channel_mask = channels
    if LANES_TAKE_AXIS_0:
        offsets = index[None, :, None] * CHANNELS + channel
        address = source + tl.max_contiguous(offsets, [1, 2, channel.shape[2]])
    else:
        address = source + index[None, :, None] * CHANNELS + channel
    return tl.load(address, mask=mask[None, :, None] & channel_mask, other=0).to(COMPUTE)


@triton.jit
def _map(
    base, batch, first, pixels, channels, Y, X,
    CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Addresses in a map (N, CHANNELS, Y, X), from channel ``first`` on, and which of them exist.

    Each is (chunks, pixels, channels).
    """
    _, _, pixel, pixel_mask = pixels
    channel, channel_mask = channels
    channel = (first + channel).to(INDEX)
    if CHANNELS_LAST:
        address = base + (batch * (Y * X) + pixel[None, :, None]) * CHANNELS + channel
    else:
        address = base + (batch * CHANNELS + channel) * (Y * X) + pixel[None, :, None]
    return address, pixel_mask[None, :, None] & channel_mask


@triton.jit
def _position(offsets, group, point, pixels, geometry, POINTS: tl.constexpr, COMPUTE: tl.constexpr):
    """Where ``point`` of pixels is read, (y, x) in input pixels. Groups count over the batch."""
    _, _, Y, X, step_y, step_x = geometry
    row, column, pixel, mask = pixels
    SIDE: tl.constexpr = int(POINTS**0.5)
    plane = offsets + (group * POINTS + point) * 2 * (Y * X) + pixel
    dy = tl.load(plane, mask=mask, other=0).to(COMPUTE)
    dx = tl.load(plane + Y * X, mask=mask, other=0).to(COMPUTE)
    y = (dy + (row + (point // SIDE - SIDE // 2))) * step_y
    x = (dx + (column + (point % SIDE - SIDE // 2))) * step_x
    return y, x


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
def _load_corners(
    source, y, x, mask, channels, geometry,
    CHANNELS: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Channels of the four corners around (y, x), row by row; 0 off the map.

    Each is (chunks, pixels, channels). Then the fractions of the way, in y and x, from the first
    corner.
    """
    H, W, _, _, _, _ = geometry
    row, column, inside = _cell(y, x, geometry)
    # A coordinate times 0 is 0, but NaN for NaN and infinity, which propagate. Less itself it need
    # not be 0: made one with the multiplication before it, a subtraction leaves what that rounded.
    fraction_y = tl.where(inside, y - row, y * 0.0)
    fraction_x = tl.where(inside, x - column, x * 0.0)
    above, below = inside & mask & (row >= 0), inside & mask & (row + 1 < H)
    left, right = column >= 0, column + 1 < W
    i = row.to(INDEX) * W + column
    return (
        _load_rows(source, i, above & left, channels, CHANNELS, COMPUTE),
        _load_rows(source, i + 1, above & right, channels, CHANNELS, COMPUTE),
        _load_rows(source, i + W, below & left, channels, CHANNELS, COMPUTE),
        _load_rows(source, i + W + 1, below & right, channels, CHANNELS, COMPUTE),
        fraction_y,
        fraction_x,
    )


@triton.jit
def _add_interpolated(total, corners, scale):
    """``total`` plus the bilinear interpolation between four corners times ``scale``, (pixels,)."""
    c00, c01, c10, c11, fraction_y, fraction_x = corners
    above, below = scale * (1 - fraction_y), scale * fraction_y
    # One after the other, that each be a multiplication and addition in one.
    total += c00 * (above * (1 - fraction_x))[None, :, None]
    total += c01 * (above * fraction_x)[None, :, None]
    total += c10 * (below * (1 - fraction_x))[None, :, None]
    total += c11 * (below * fraction_x)[None, :, None]
    return total


@triton.jit
def _sum_channels(x):
    """(chunks, pixels, channels) to (pixels,)."""
    return tl.sum(tl.sum(x, axis=0), axis=1)


@triton.jit
def _interpolate_products(upstream, corners):
    """Sum over the channels of upstream * interpolated, and its derivatives by y and x.

    Each is (pixels,). Interpolation is linear: the products with the corners are all it takes.
    """
    c00, c01, c10, c11, fraction_y, fraction_x = corners
    d00, d01 = _sum_channels(upstream * c00), _sum_channels(upstream * c01)
    d10, d11 = _sum_channels(upstream * c10), _sum_channels(upstream * c11)
    above = d00 * (1 - fraction_x) + d01 * fraction_x
    below = d10 * (1 - fraction_x) + d11 * fraction_x
    by_x = (d01 - d00) * (1 - fraction_y) + (d11 - d10) * fraction_y
    return above * (1 - fraction_y) + below * fraction_y, below - above, by_x


@triton.jit
def _load_bias(
    bias, head, point, first, channels,
    POINTS: tl.constexpr, HEAD_DEPTH: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Bias of keys, (chunks, 1, channels), from ``first`` in the head on; 0 where there is none."""
    channel, mask = channels
    if bias is None:
        return tl.zeros(channel.shape, COMPUTE)
    else:
        address = bias + (head * POINTS + point) * HEAD_DEPTH + first + channel
        return tl.load(address, mask=mask, other=0).to(COMPUTE)


@triton.jit
def _table(pixels, POINTS: tl.constexpr, POINT_BLOCK: tl.constexpr):
    """Of all samples of the pixels the numbers, and which exist, (pixels, POINT_BLOCK)."""
    _, _, pixel, mask = pixels
    point = tl.arange(0, POINT_BLOCK)[None, :]
    return pixel[:, None] * POINTS + point, mask[:, None] & (point < POINTS)


@triton.jit
def _accumulate(address, value, mask, is_first):
    """Add ``value`` to what lies there, or put it there.

    Between two calls for the same addresses goes a barrier: several lanes hold a pixel.
    """
    tl.store(address, value + tl.load(address, mask=mask & (not is_first), other=0), mask=mask)


@triton.jit
def _attend(
    query, key, offsets, bias, attention, batch, head, pixels, geometry,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, SLICES: tl.constexpr, POINTS: tl.constexpr,
    KEY_WIDTH: tl.constexpr, KEY_BLOCK: tl.constexpr, KEY_CHUNK: tl.constexpr, SCALE: tl.constexpr,
    POINT_BLOCK: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Write ``attention``, (Y * X, POINTS): the softmax over the points of pixels."""
    H, W, Y, X, _, _ = geometry
    _, _, pixel, mask = pixels
    HEAD_SLICES: tl.constexpr = SLICES // HEADS
    DEPTH: tl.constexpr = SLICES * KEY_WIDTH
    for local in range(HEAD_SLICES):
        piece = head * HEAD_SLICES + local
        group = batch * GROUPS + piece // (SLICES // GROUPS)
        queries = query + batch * (Y * X) * DEPTH + piece * KEY_WIDTH
        keys = key + batch * (H * W) * DEPTH + piece * KEY_WIDTH
        for start in range(0, KEY_WIDTH, KEY_BLOCK):
            channels = _channels(start, KEY_WIDTH, KEY_BLOCK, KEY_CHUNK)
            q = _load_rows(queries, pixel, mask, channels, DEPTH, COMPUTE)
            for point in range(POINTS):
                y, x = _position(offsets, group, point, pixels, geometry, POINTS, COMPUTE)
                corners = _load_corners(keys, y, x, mask, channels, geometry, DEPTH, COMPUTE, INDEX)
                b = _load_bias(
                    bias, head, point, local * KEY_WIDTH, channels, POINTS, DEPTH // HEADS, COMPUTE
                )
                k = _add_interpolated(b, corners, 1.0)
                logit = _sum_channels(q * k) * SCALE
                is_first = local + start == 0
                _accumulate(attention + pixel * POINTS + point, logit, mask, is_first)
            tl.debug_barrier()
    entry, entry_mask = _table(pixels, POINTS, POINT_BLOCK)
    # Not -inf for pixels that do not exist: they would give NaN, which costs nothing but is ugly.
    is_point = tl.arange(0, POINT_BLOCK)[None, :] < POINTS
    logits = tl.load(attention + entry, mask=entry_mask, other=0.0)
    logits = tl.where(is_point, logits, float("-inf"))
    weights = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    weights = weights / tl.sum(weights, axis=1)[:, None]
    tl.store(attention + entry, weights, mask=entry_mask)
    tl.debug_barrier()


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    query, key, value, offsets, bias, attention, output, H, W, Y, X,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, SLICES: tl.constexpr, POINTS: tl.constexpr,
    KEY_WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    KEY_PADDED: tl.constexpr, VALUE_PADDED: tl.constexpr,
    SCALE: tl.constexpr, POINT_BLOCK: tl.constexpr, OUTPUT_CHANNELS_LAST: tl.constexpr,
    COMPUTE: tl.constexpr, INDEX: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr, PASS_BYTES: tl.constexpr,
    CHUNK_BYTES: tl.constexpr,
):  # fmt: skip
    """The output of a tile of pixels and one head."""
    geometry = _geometry(H, W, Y, X, COMPUTE)
    HEAD_SLICES: tl.constexpr = SLICES // HEADS
    CHANNELS: tl.constexpr = SLICES * VALUE_WIDTH
    KEY_BYTES: tl.constexpr = key.dtype.element_ty.primitive_bitwidth // 8
    VALUE_BYTES: tl.constexpr = value.dtype.element_ty.primitive_bitwidth // 8
    KEY_FULL: tl.constexpr = PASS_BYTES // KEY_BYTES
    VALUE_FULL: tl.constexpr = PASS_BYTES // VALUE_BYTES
    KEY_BLOCK: tl.constexpr = KEY_FULL if KEY_FULL < KEY_PADDED else KEY_PADDED
    VALUE_BLOCK: tl.constexpr = VALUE_FULL if VALUE_FULL < VALUE_PADDED else VALUE_PADDED

    batch, head, pixels = _tile(geometry, HEADS, TILE_ROWS, TILE_COLUMNS, INDEX)
    _, _, pixel, mask = pixels
    attention += (batch * HEADS + head) * (Y * X) * POINTS
    _attend(
        query, key, offsets, bias, attention, batch, head, pixels, geometry,
        HEADS, GROUPS, SLICES, POINTS, KEY_WIDTH, KEY_BLOCK, CHUNK_BYTES // KEY_BYTES, SCALE,
        POINT_BLOCK, COMPUTE, INDEX,
    )  # fmt: skip
    for local in range(HEAD_SLICES):
        piece = head * HEAD_SLICES + local
        group = batch * GROUPS + piece // (SLICES // GROUPS)
        values = value + batch * (H * W) * CHANNELS + piece * VALUE_WIDTH
        for start in range(0, VALUE_WIDTH, VALUE_BLOCK):
            channels = _channels(start, VALUE_WIDTH, VALUE_BLOCK, CHUNK_BYTES // VALUE_BYTES)
            total = tl.zeros((channels[0].shape[0], pixel.shape[0], channels[0].shape[2]), COMPUTE)
            for point in range(POINTS):
                y, x = _position(offsets, group, point, pixels, geometry, POINTS, COMPUTE)
                corners = _load_corners(
                    values, y, x, mask, channels, geometry, CHANNELS, COMPUTE, INDEX
                )
                weight = tl.load(attention + pixel * POINTS + point, mask=mask, other=0)
                total = _add_interpolated(total, corners, weight)
            address, address_mask = _map(
                output, batch, piece * VALUE_WIDTH, pixels, channels, Y, X,
                CHANNELS, OUTPUT_CHANNELS_LAST, INDEX,
            )  # fmt: skip
            tl.store(address, total, mask=address_mask)


@triton.jit(do_not_specialize=SIZES)
def backward_pixels_kernel(
    grad_output, query, key, value, offsets, bias,
    attention, grad_logits, upstream, offset_shares,
    grad_query, grad_offsets, H, W, Y, X,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, SLICES: tl.constexpr, POINTS: tl.constexpr,
    KEY_WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    KEY_PADDED: tl.constexpr, VALUE_PADDED: tl.constexpr,
    SCALE: tl.constexpr, POINT_BLOCK: tl.constexpr, OUTPUT_CHANNELS_LAST: tl.constexpr,
    COMPUTE: tl.constexpr, INDEX: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr, PASS_BYTES: tl.constexpr,
    CHUNK_BYTES: tl.constexpr,
):  # fmt: skip
    """The gradients that belong to a tile of pixels and one head: of its queries and offsets.

    Writes what the gradients of key and value are gathered from, too: the attention and the
    gradient of q . (k + b), (N, HEADS, Y * X, POINTS); unless ``grad_output`` is channels-last,
    ``upstream``, which is the same and is.

    The gradient of the offsets is the share of each slice, (N, SLICES, POINTS, 2, Y * X);
    ``offset_shares`` is its like in the dtype of sums and may be the same.
    """
    geometry = _geometry(H, W, Y, X, COMPUTE)
    _, _, _, _, step_y, step_x = geometry
    HEAD_SLICES: tl.constexpr = SLICES // HEADS
    GROUP_SLICES: tl.constexpr = SLICES // GROUPS
    DEPTH: tl.constexpr = SLICES * KEY_WIDTH
    CHANNELS: tl.constexpr = SLICES * VALUE_WIDTH
    KEY_BYTES: tl.constexpr = key.dtype.element_ty.primitive_bitwidth // 8
    VALUE_BYTES: tl.constexpr = value.dtype.element_ty.primitive_bitwidth // 8
    KEY_FULL: tl.constexpr = PASS_BYTES // KEY_BYTES
    VALUE_FULL: tl.constexpr = PASS_BYTES // VALUE_BYTES
    KEY_BLOCK: tl.constexpr = KEY_FULL if KEY_FULL < KEY_PADDED else KEY_PADDED
    VALUE_BLOCK: tl.constexpr = VALUE_FULL if VALUE_FULL < VALUE_PADDED else VALUE_PADDED

    batch, head, pixels = _tile(geometry, HEADS, TILE_ROWS, TILE_COLUMNS, INDEX)
    _, _, pixel, mask = pixels
    attention += (batch * HEADS + head) * (Y * X) * POINTS
    grad_logits += (batch * HEADS + head) * (Y * X) * POINTS
    _attend(
        query, key, offsets, bias, attention, batch, head, pixels, geometry,
        HEADS, GROUPS, SLICES, POINTS, KEY_WIDTH, KEY_BLOCK, CHUNK_BYTES // KEY_BYTES, SCALE,
        POINT_BLOCK, COMPUTE, INDEX,
    )  # fmt: skip

    # The gradient of the attention, for now in the place of that of the logits.
    for local in range(HEAD_SLICES):
        piece = head * HEAD_SLICES + local
        group = batch * GROUPS + piece // GROUP_SLICES
        values = value + batch * (H * W) * CHANNELS + piece * VALUE_WIDTH
        shares = (batch * SLICES + piece) * POINTS * 2 * (Y * X) + pixel
        for start in range(0, VALUE_WIDTH, VALUE_BLOCK):
            channels = _channels(start, VALUE_WIDTH, VALUE_BLOCK, CHUNK_BYTES // VALUE_BYTES)
            address, address_mask = _map(
                grad_output, batch, piece * VALUE_WIDTH, pixels, channels, Y, X,
                CHANNELS, OUTPUT_CHANNELS_LAST, INDEX,
            )  # fmt: skip
            g = tl.load(address, mask=address_mask, other=0)
            if not OUTPUT_CHANNELS_LAST:
                address, address_mask = _map(
                    upstream, batch, piece * VALUE_WIDTH, pixels, channels, Y, X,
                    CHANNELS, True, INDEX,
                )  # fmt: skip
                tl.store(address, g, mask=address_mask)
            g = g.to(COMPUTE)
            for point in range(POINTS):
                y, x = _position(offsets, group, point, pixels, geometry, POINTS, COMPUTE)
                corners = _load_corners(
                    values, y, x, mask, channels, geometry, CHANNELS, COMPUTE, INDEX
                )
                product, by_y, by_x = _interpolate_products(g, corners)
                sample = pixel * POINTS + point
                _accumulate(grad_logits + sample, product, mask, local + start == 0)
                weight = tl.load(attention + sample, mask=mask, other=0)
                share = offset_shares + shares + tl.cast(point, INDEX) * 2 * (Y * X)
                _accumulate(share, weight * by_y * step_y, mask, start == 0)
                _accumulate(share + Y * X, weight * by_x * step_x, mask, start == 0)
            tl.debug_barrier()

    # Softmax: dL/dlogit = a * (dL/da - sum(a * dL/da)).
    entry, entry_mask = _table(pixels, POINTS, POINT_BLOCK)
    weights = tl.load(attention + entry, mask=entry_mask, other=0)
    grads = tl.load(grad_logits + entry, mask=entry_mask, other=0)
    mean = tl.sum(weights * grads, axis=1)[:, None]
    grads = tl.where(entry_mask, weights * (grads - mean) * SCALE, 0.0)
    tl.store(grad_logits + entry, grads, mask=entry_mask)
    tl.debug_barrier()

    for local in range(HEAD_SLICES):
        piece = head * HEAD_SLICES + local
        group = batch * GROUPS + piece // GROUP_SLICES
        queries = query + batch * (Y * X) * DEPTH + piece * KEY_WIDTH
        keys = key + batch * (H * W) * DEPTH + piece * KEY_WIDTH
        shares = (batch * SLICES + piece) * POINTS * 2 * (Y * X) + pixel
        for start in range(0, KEY_WIDTH, KEY_BLOCK):
            channels = _channels(start, KEY_WIDTH, KEY_BLOCK, CHUNK_BYTES // KEY_BYTES)
            q = _load_rows(queries, pixel, mask, channels, DEPTH, COMPUTE)
            total = tl.zeros(q.shape, COMPUTE)
            is_last = start + KEY_BLOCK >= KEY_WIDTH
            for point in range(POINTS):
                y, x = _position(offsets, group, point, pixels, geometry, POINTS, COMPUTE)
                corners = _load_corners(keys, y, x, mask, channels, geometry, DEPTH, COMPUTE, INDEX)
                sample = pixel * POINTS + point
                weight = tl.load(grad_logits + sample, mask=mask, other=0)
                b = _load_bias(
                    bias, head, point, local * KEY_WIDTH, channels, POINTS, DEPTH // HEADS, COMPUTE
                )
                total += weight[None, :, None] * b
                total = _add_interpolated(total, corners, weight)
                products = _interpolate_products(q, corners)
                plane = shares + tl.cast(point, INDEX) * 2 * (Y * X)
                by_y = tl.load(offset_shares + plane, mask=mask, other=0)
                by_x = tl.load(offset_shares + plane + Y * X, mask=mask, other=0)
                by_y += weight * products[1] * step_y
                by_x += weight * products[2] * step_x
                tl.store(offset_shares + plane, by_y, mask=mask & (not is_last))
                tl.store(offset_shares + plane + Y * X, by_x, mask=mask & (not is_last))
                tl.store(grad_offsets + plane, by_y, mask=mask & is_last)
                tl.store(grad_offsets + plane + Y * X, by_x, mask=mask & is_last)
            address = grad_query + batch * (Y * X) * DEPTH + piece * KEY_WIDTH
            address += pixel[None, :, None] * DEPTH + channels[0]
            tl.store(address, total, mask=mask[None, :, None] & channels[1])
            tl.debug_barrier()


@triton.jit(do_not_specialize=SIZES)
def backward_bias_kernel(
    grad_logits, query, shares, H, W, Y, X,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, SLICES: tl.constexpr, POINTS: tl.constexpr,
    HEAD_DEPTH: tl.constexpr, POINT_BLOCK: tl.constexpr, DEPTH_BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr, INDEX: tl.constexpr, SPAN: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """The share of a span of pixels in the gradient of the bias, of one head and some channels.

    ``shares`` is (N * spans, HEADS, POINTS, HEAD_DEPTH).
    """
    spans = tl.cdiv(Y * X, SPAN)
    first = tl.program_id(0) % spans * SPAN
    head = tl.program_id(0) // spans % HEADS
    program = tl.program_id(0) // spans // HEADS
    BLOCKS: tl.constexpr = (HEAD_DEPTH + DEPTH_BLOCK - 1) // DEPTH_BLOCK
    batch = (program // BLOCKS).to(INDEX)
    channel = program % BLOCKS * DEPTH_BLOCK + tl.arange(0, DEPTH_BLOCK)[None, :]
    point = tl.arange(0, POINT_BLOCK)[:, None]
    grad_logits += (batch * HEADS + head) * (Y * X) * POINTS
    query += batch * (Y * X) * (HEADS * HEAD_DEPTH) + head * HEAD_DEPTH
    total = tl.zeros((POINT_BLOCK, DEPTH_BLOCK), COMPUTE)
    for start in range(first, tl.minimum(first + SPAN, Y * X), PIXELS):
        pixel = (start + tl.arange(0, PIXELS)).to(INDEX)
        mask = (pixel < Y * X)[None, :] & (point < POINTS)
        grads = tl.load(grad_logits + pixel[None, :] * POINTS + point, mask=mask, other=0)
        mask = (pixel < Y * X)[:, None] & (channel < HEAD_DEPTH)
        address = query + pixel[:, None] * (HEADS * HEAD_DEPTH) + channel
        q = tl.load(address, mask=mask, other=0).to(COMPUTE)
        total += tl.dot(grads, q, input_precision="ieee", out_dtype=COMPUTE)
    share = (batch * spans + first // SPAN) * HEADS + head
    address = shares + (share * POINTS + point) * HEAD_DEPTH + channel
    tl.store(address, total, mask=(point < POINTS) & (channel < HEAD_DEPTH))


@triton.jit(do_not_specialize=SIZES)
def samples_kernel(
    offsets, positions, cells, H, W, Y, X,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, SLICES: tl.constexpr, POINTS: tl.constexpr,
    POINT_BLOCK: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Where the samples are read: their positions, and the numbers of the cells that hold these.

    Cells, (N, GROUPS, Y * X, POINTS), are numbered group by group and row by row from the one that
    begins at (-1, -1), W + 1 in a row. Samples whose cell has no corner on the map have the number
    after the last.
    """
    geometry = _geometry(H, W, Y, X, COMPUTE)
    blocks = tl.cdiv(Y * X, PIXELS)
    group = (tl.program_id(0) // blocks).to(INDEX)
    pixel = tl.program_id(0) % blocks * PIXELS + tl.arange(0, PIXELS)[:, None]
    point = tl.arange(0, POINT_BLOCK)[None, :]
    mask = (pixel < Y * X) & (point < POINTS)
    pixels = pixel // X, pixel % X, pixel.to(INDEX), mask
    y, x = _position(offsets, group, point, pixels, geometry, POINTS, COMPUTE)
    row, column, inside = _cell(y, x, geometry)
    cell = tl.where(inside, (row + 1) * (W + 1) + column + 1, (H + 1) * (W + 1))
    cell += group * ((H + 1) * (W + 1) + 1)
    sample = (group * (Y * X) + pixel) * POINTS + point
    tl.store(positions + sample * 2, y, mask=mask)
    tl.store(positions + sample * 2 + 1, x, mask=mask)
    tl.store(cells + sample, cell, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def backward_source_kernel(
    coefficients, upstream, positions, samples, cell_starts, grad_source, H, W, Y, X,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, SLICES: tl.constexpr, POINTS: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, SOURCE_CHANNELS_LAST: tl.constexpr,
    COMPUTE: tl.constexpr, INDEX: tl.constexpr,
    STRIP: tl.constexpr, SAMPLES: tl.constexpr, PASS_BYTES: tl.constexpr,
    CHUNK_BYTES: tl.constexpr,
):  # fmt: skip
    """The gradient of a block of channels of the key, or the value, at a strip of a row of the map.

    Walks along the strip from cell to cell and gathers the samples of the two that lie above one
    another: ``samples`` lists all by the numbers of their cells, ``cell_starts`` says where each
    cell begins in the list. Each passes on ``upstream`` at its pixel times its coefficient, to the
    position on its left and to that on its right: for the value the gradient of the output and the
    attention, for the key the query and the gradient of the logits.
    """
    CHANNELS: tl.constexpr = SLICES * WIDTH
    ITEM_BYTES: tl.constexpr = upstream.dtype.element_ty.primitive_bitwidth // 8
    FULL: tl.constexpr = PASS_BYTES // ITEM_BYTES
    BLOCK: tl.constexpr = FULL if FULL < PADDED else PADDED
    BLOCKS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    strips = tl.cdiv(W, STRIP)
    begin = tl.program_id(0) % strips * STRIP
    row = tl.program_id(0) // strips % H
    program = tl.program_id(0) // strips // H
    channels = _channels(program % BLOCKS * BLOCK, WIDTH, BLOCK, CHUNK_BYTES // ITEM_BYTES)
    piece = program // BLOCKS % SLICES
    batch = (program // BLOCKS // SLICES).to(INDEX)
    group = batch * GROUPS + piece // (SLICES // GROUPS)
    head = batch * HEADS + piece // (SLICES // HEADS)

    first_sample = group * (Y * X) * POINTS
    coefficients += head * (Y * X) * POINTS
    upstream += batch * (Y * X) * CHANNELS + piece * WIDTH
    cell_starts += group * ((H + 1) * (W + 1) + 1) + row * (W + 1)
    left = tl.zeros((channels[0].shape[0], channels[0].shape[2]), COMPUTE)
    for column in range(begin - 1, tl.minimum(begin + STRIP, W)):
        right = tl.zeros(left.shape, COMPUTE)
        above, below = cell_starts + column + 1, cell_starts + column + 1 + (W + 1)
        first = tl.load(above).to(INDEX)
        above_count = tl.load(above + 1).to(INDEX) - first
        first_below = tl.load(below).to(INDEX)
        count = above_count + tl.load(below + 1).to(INDEX) - first_below
        for start in range(0, count, SAMPLES):
            entry = start + tl.arange(0, SAMPLES)
            mask = entry < count
            entry += tl.where(entry < above_count, first, first_below - above_count)
            sample = tl.load(samples + entry, mask=mask, other=0).to(INDEX)
            y = tl.load(positions + sample * 2, mask=mask, other=0)
            x = tl.load(positions + sample * 2 + 1, mask=mask, other=0)
            sample = tl.where(mask, sample - first_sample, 0)
            weight = tl.load(coefficients + sample, mask=mask, other=0) * (1 - tl.abs(y - row))
            rows = _load_rows(upstream, sample // POINTS, mask, channels, CHANNELS, COMPUTE)
            left += tl.sum((weight * (1 - (x - column)))[None, :, None] * rows, axis=1)
            right += tl.sum((weight * (x - column))[None, :, None] * rows, axis=1)
        channel = tl.reshape(channels[0], left.shape)
        position = row * W + column
        if SOURCE_CHANNELS_LAST:
            address = (batch * (H * W) + position) * CHANNELS + piece * WIDTH + channel
        else:
            address = (batch * CHANNELS + piece * WIDTH + channel) * (H * W) + position
        mask = (channel < WIDTH) & (column >= begin)
        tl.store(grad_source + address, left, mask=mask)
        left = right
