"""What the kernels do with a tile, the values of some pixels (rows) and channels (columns).

A tile has sizes that are powers of 2; what lies beyond the pixels or channels that exist is masked.
Maps are dense, contiguous (N, C, H, W) or channels-last.
"""

# What is known when a kernel is compiled is in capitals.
# ruff: noqa: N803

import triton
import triton.language as tl
from torch.torch_version import TorchVersion

# Triton before 3.7 has the lanes of a gather go along axis 0 before axis 1 where it finds neither
# contiguous. In gathers neighbouring lanes would then read other channels, not other pixels; so the
# pixels are said to lie side by side in twos. As it is not told how they are aligned, no more
# follows from that.
LANES_TAKE_AXIS_0 = tl.constexpr(TorchVersion(triton.__version__) < (3, 7))


@triton.jit
def pixel_tile(number, pixels, BLOCK_PIXELS: tl.constexpr, INDEX: tl.constexpr):
    """Of the tiles of all images the one of that number: its image, pixels, and which exist."""
    blocks = tl.cdiv(pixels, BLOCK_PIXELS)
    pixel = number % blocks * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    return (number // blocks).to(INDEX), pixel.to(INDEX), pixel < pixels


@triton.jit
def tile_offsets(
    image, pixel, channel, pixels, CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr
):
    """Where the values of a tile lie in a map."""
    if CHANNELS_LAST:
        return (image * pixels + pixel)[:, None] * CHANNELS + channel[None, :]
    else:
        return (image * CHANNELS + channel)[None, :] * pixels + pixel[:, None]


@triton.jit
def load_tile(
    source, image, pixel, mask, channel, channel_mask, pixels,
    CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Values of a map, 0 where masked."""
    offsets = tile_offsets(image, pixel, channel, pixels, CHANNELS, CHANNELS_LAST)
    return tl.load(source + offsets, mask=mask[:, None] & channel_mask[None, :], other=0)


@triton.jit
def store_tile(
    target, values, image, pixel, mask, channel, channel_mask, pixels,
    CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Write a tile of a map."""
    offsets = tile_offsets(image, pixel, channel, pixels, CHANNELS, CHANNELS_LAST)
    tl.store(target + offsets, values, mask=mask[:, None] & channel_mask[None, :])


@triton.jit
def load_row(source, index, mask, COMPUTE: tl.constexpr):
    """Values that are the same for all pixels, (1, columns), 0 where masked."""
    return tl.load(source + index, mask=mask, other=0).to(COMPUTE)[None, :]


@triton.jit
def standardize(tile, channel_mask, CHANNELS: tl.constexpr, EPSILON: tl.constexpr):
    """Each pixel's channels with mean 0 and variance 1; the means, and what scaled them."""
    mean = tl.sum(tile, axis=1) / CHANNELS
    centred = tl.where(channel_mask[None, :], tile - mean[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, axis=1) / CHANNELS + EPSILON)
    return centred * inverse[:, None], mean, inverse


@triton.jit
def standardize_backward(grad, standardized, inverse, CHANNELS: tl.constexpr):
    """The gradient of what was standardized; ``grad`` is zero where masked."""
    mean = tl.sum(grad, axis=1) / CHANNELS
    slope = tl.sum(grad * standardized, axis=1) / CHANNELS
    return (grad - mean[:, None] - standardized * slope[:, None]) * inverse[:, None]


@triton.jit
def add_product(sums, a, b, PRECISION: tl.constexpr):
    """``sums + a @ b``, in the precision of the sums."""
    return tl.dot(a, b, sums, input_precision=PRECISION, out_dtype=sums.dtype)


@triton.jit(do_not_specialize=["count"])
def sum_parts_kernel(
    parts, results, count, STARTS: tl.constexpr, SIZES: tl.constexpr, TOTAL: tl.constexpr,
    BLOCK_PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum over the rows of ``parts``, (count, TOTAL), the columns of which are several results."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK_PARTS, BLOCK), parts.dtype.element_ty)
    for start in range(0, count, BLOCK_PARTS):
        row = start + tl.arange(0, BLOCK_PARTS)
        mask = (row < count)[:, None] & (column < TOTAL)[None, :]
        sums += tl.load(parts + row[:, None] * TOTAL + column[None, :], mask=mask, other=0)
    total = tl.sum(sums, axis=0)
    for i in tl.static_range(len(results)):
        place = column - STARTS[i]
        tl.store(results[i] + place, total, mask=(place >= 0) & (place < SIZES[i]))
