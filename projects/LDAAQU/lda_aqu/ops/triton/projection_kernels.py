"""Triton kernels of layer normalisation and projections; :mod:`.projection` launches them.

Shape shorthand:
    P: pixels of a tile; C: channels of the map; D: outputs of all projections together
"""

# What is known when a kernel is compiled is in capitals.
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


@triton.jit
def _statistics(
    x, image, pixel, mask, pixels, CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    EPSILON: tl.constexpr, COMPUTE: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Mean of each pixel's channels, and one over their standard deviation, each (P)."""
    sums = tl.zeros((pixel.shape[0], BLOCK_CHANNELS), COMPUTE)
    for start in range(0, CHANNELS, BLOCK_CHANNELS):
        channel = start + tl.arange(0, BLOCK_CHANNELS)
        sums += load_tile(
            x, image, pixel, mask, channel, channel < CHANNELS, pixels, CHANNELS, CHANNELS_LAST
        ).to(COMPUTE)
    mean = tl.sum(sums, axis=1) / CHANNELS
    # What was read above is still in the cache.
    sums = tl.zeros((pixel.shape[0], BLOCK_CHANNELS), COMPUTE)
    for start in range(0, CHANNELS, BLOCK_CHANNELS):
        channel = start + tl.arange(0, BLOCK_CHANNELS)
        tile = load_tile(
            x, image, pixel, mask, channel, channel < CHANNELS, pixels, CHANNELS, CHANNELS_LAST
        ).to(COMPUTE)
        centred = tl.where((channel < CHANNELS)[None, :], tile - mean[:, None], 0.0)
        sums += centred * centred
    return mean, tl.rsqrt(tl.sum(sums, axis=1) / CHANNELS + EPSILON)


@triton.jit(do_not_specialize=["pixels"])
def project_kernel(
    x, norm_weight, norm_bias, weight, outputs, pixels,
    CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    STARTS: tl.constexpr, WIDTHS: tl.constexpr, OUTPUTS: tl.constexpr, EPSILON: tl.constexpr,
    COMPUTE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr,
):  # fmt: skip
    """Some outputs of a tile of pixels; they are those of one or more maps, side by side."""
    image, pixel, mask = pixel_tile(tl.program_id(0), pixels, BLOCK_PIXELS, INDEX)
    output = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    mean, inverse = _statistics(
        x, image, pixel, mask, pixels, CHANNELS, CHANNELS_LAST, EPSILON, COMPUTE, BLOCK_CHANNELS
    )
    sums = tl.zeros((BLOCK_PIXELS, BLOCK_OUTPUTS), COMPUTE)
    for start in range(0, CHANNELS, BLOCK_CHANNELS):
        channel = start + tl.arange(0, BLOCK_CHANNELS)
        channel_mask = channel < CHANNELS
        tile = load_tile(
            x, image, pixel, mask, channel, channel_mask, pixels, CHANNELS, CHANNELS_LAST
        ).to(COMPUTE)
        tile = (tile - mean[:, None]) * inverse[:, None]
        tile *= load_row(norm_weight, channel, channel_mask, COMPUTE)
        tile += load_row(norm_bias, channel, channel_mask, COMPUTE)
        matrix = tl.load(
            weight + output[None, :] * CHANNELS + channel[:, None],
            mask=(output < OUTPUTS)[None, :] & channel_mask[:, None],
            other=0,
        )
        sums = add_product(sums, tile.to(DOT), matrix.to(DOT), PRECISION)
    for i in tl.static_range(len(outputs)):
        channel = output - STARTS[i]
        channel_mask = (channel >= 0) & (channel < WIDTHS[i])
        store_tile(
            outputs[i], sums, image, pixel, mask, channel, channel_mask, pixels, WIDTHS[i], True
        )


@triton.jit
def _load_grads(
    grads, image, pixel, mask, output, pixels, STARTS: tl.constexpr, WIDTHS: tl.constexpr
):
    """Gradients of some outputs, those of all maps side by side: (P, outputs)."""
    tile = tl.zeros((pixel.shape[0], output.shape[0]), grads[0].dtype.element_ty)
    for i in tl.static_range(len(grads)):
        channel = output - STARTS[i]
        channel_mask = (channel >= 0) & (channel < WIDTHS[i])
        part = load_tile(
            grads[i], image, pixel, mask, channel, channel_mask, pixels, WIDTHS[i], True
        )
        tile = tl.where(channel_mask[None, :], part, tile)
    return tile


@triton.jit(do_not_specialize=["pixels"])
def grad_map_kernel(
    grads, x, norm_weight, weight, grad_x, statistics, pixels,
    CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    STARTS: tl.constexpr, WIDTHS: tl.constexpr, OUTPUTS: tl.constexpr, EPSILON: tl.constexpr,
    COMPUTE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr,
):  # fmt: skip
    """The gradient of the map at a tile of pixels, all channels of it.

    ``statistics`` receives the mean of each pixel and one over its standard deviation: (N, 2, H W).
    """
    image, pixel, mask = pixel_tile(tl.program_id(0), pixels, BLOCK_PIXELS, INDEX)
    channel = tl.arange(0, BLOCK_CHANNELS)
    channel_mask = channel < CHANNELS
    grad = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), COMPUTE)
    for start in range(0, OUTPUTS, BLOCK_OUTPUTS):
        output = start + tl.arange(0, BLOCK_OUTPUTS)
        rows = _load_grads(grads, image, pixel, mask, output, pixels, STARTS, WIDTHS)
        matrix = tl.load(
            weight + output[:, None] * CHANNELS + channel[None, :],
            mask=(output < OUTPUTS)[:, None] & channel_mask[None, :],
            other=0,
        )
        grad = add_product(grad, rows.to(DOT), matrix.to(DOT), PRECISION)
    tile = load_tile(
        x, image, pixel, mask, channel, channel_mask, pixels, CHANNELS, CHANNELS_LAST
    ).to(COMPUTE)
    standardized, mean, inverse = standardize(tile, channel_mask, CHANNELS, EPSILON)
    grad *= load_row(norm_weight, channel, channel_mask, COMPUTE)
    grad = standardize_backward(grad, standardized, inverse, CHANNELS)
    store_tile(
        grad_x, grad, image, pixel, mask, channel, channel_mask, pixels, CHANNELS, CHANNELS_LAST
    )
    statistics += image * 2 * pixels + pixel
    tl.store(statistics, mean, mask=mask)
    tl.store(statistics + pixels, inverse, mask=mask)


@triton.jit(do_not_specialize=["images", "pixels"])
def grad_weight_kernel(
    grads, x, statistics, products, sums, images, pixels,
    CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    STARTS: tl.constexpr, WIDTHS: tl.constexpr, OUTPUTS: tl.constexpr,
    COMPUTE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr,
):  # fmt: skip
    """Of some outputs' gradients, over a part of the pixels, sums and products.

    The products, (parts, D, C), are those with the map of mean 0 and variance 1; the sums are
    (parts, D).
    """
    part = tl.program_id(0)
    output = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    channel = tl.program_id(2) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    channel_mask = channel < CHANNELS
    product = tl.zeros((BLOCK_OUTPUTS, BLOCK_CHANNELS), COMPUTE)
    total = tl.zeros((BLOCK_OUTPUTS,), COMPUTE)
    tiles = images * tl.cdiv(pixels, BLOCK_PIXELS)
    for number in range(part, tiles, tl.num_programs(0)):
        image, pixel, mask = pixel_tile(number, pixels, BLOCK_PIXELS, INDEX)
        rows = _load_grads(grads, image, pixel, mask, output, pixels, STARTS, WIDTHS)
        tile = load_tile(
            x, image, pixel, mask, channel, channel_mask, pixels, CHANNELS, CHANNELS_LAST
        ).to(COMPUTE)
        of_pixel = statistics + image * 2 * pixels + pixel
        mean = tl.load(of_pixel, mask=mask, other=0)
        inverse = tl.load(of_pixel + pixels, mask=mask, other=0)
        tile = (tile - mean[:, None]) * inverse[:, None]
        product = add_product(product, tl.trans(rows).to(DOT), tile.to(DOT), PRECISION)
        total += tl.sum(rows.to(COMPUTE), axis=0)
    row = part * OUTPUTS + output
    tl.store(
        products + row[:, None] * CHANNELS + channel[None, :],
        product,
        mask=(output < OUTPUTS)[:, None] & channel_mask[None, :],
    )
    tl.store(sums + row, total, mask=(output < OUTPUTS) & (tl.program_id(2) == 0))


@triton.jit(do_not_specialize=["parts"])
def grad_parameters_kernel(
    products, sums, norm_weight, norm_bias, weight,
    grad_norm_weight, grad_norm_bias, grad_weight, parts,
    CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr,
):  # fmt: skip
    """Gradients of the parameters for a block of channels, from what grad_weight_kernel left.

    With the map s of mean 0 and variance 1 the results are W (norm_weight s + norm_bias).
    """
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    channel_mask = channel < CHANNELS
    scale = load_row(norm_weight, channel, channel_mask, COMPUTE)
    shift = load_row(norm_bias, channel, channel_mask, COMPUTE)
    grad_scale = tl.zeros((BLOCK_CHANNELS,), COMPUTE)
    grad_shift = tl.zeros((BLOCK_CHANNELS,), COMPUTE)
    for start in range(0, OUTPUTS, BLOCK_OUTPUTS):
        output = start + tl.arange(0, BLOCK_OUTPUTS)
        output_mask = output < OUTPUTS
        place = output[:, None] * CHANNELS + channel[None, :]
        mask = output_mask[:, None] & channel_mask[None, :]
        product = tl.zeros((BLOCK_OUTPUTS, BLOCK_CHANNELS), COMPUTE)
        total = tl.zeros((BLOCK_OUTPUTS,), COMPUTE)
        for part in range(parts):
            product += tl.load(products + part * OUTPUTS * CHANNELS + place, mask=mask, other=0)
            total += tl.load(sums + part * OUTPUTS + output, mask=output_mask, other=0)
        matrix = tl.load(weight + place, mask=mask, other=0).to(COMPUTE)
        grad_scale += tl.sum(matrix * product, axis=0)
        grad_shift += tl.sum(matrix * total[:, None], axis=0)
        tl.store(grad_weight + place, product * scale + total[:, None] * shift, mask=mask)
    tl.store(grad_norm_weight + channel, grad_scale, mask=channel_mask)
    tl.store(grad_norm_bias + channel, grad_shift, mask=channel_mask)
