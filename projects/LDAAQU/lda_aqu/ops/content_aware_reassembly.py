"""Content-aware reassembly, the operator of CARAFE: its schema, its gradient, its computation.

Shape shorthand:
    N: batch; C: channels; H, W: input size; s: scale factor; k: kernel size, p = k // 2
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

# Input pixels that are computed at a time: few on a CPU, so that what is read and written stays in
# its caches; many elsewhere, so that there is work for all of a GPU.
CPU_BAND_PIXELS = 1024
BAND_PIXELS = 2**16


def content_aware_reassembly(x: Tensor, kernels: Tensor, scale_factor: int) -> Tensor:
    """Make each output pixel the weighted sum of the window around the input pixel it lies in.

    Output pixel (i, j) is the sum over (u, v) of kernels[u * k + v, i, j] times the input at
    (i // s + u - p, j // s + v - p), which is zero outside the map (Wang et al., "CARAFE:
    Content-Aware ReAssembly of FEatures", ICCV 2019).

    Sums are in float32, or in float64 if an input is. Memory beyond the output is that of a band
    of it; the backward pass keeps the inputs alone. Not differentiable twice. In an export to ONNX
    it is made of standard operators.

    Args:
        x: (N, C, H, W), floating point.
        kernels: (N, k², sH, sW), the weights of each output pixel's window in row-major order;
            k is odd.
        scale_factor: s.

    Returns:
        (N, C, sH, sW) with the dtype of ``x``; channels-last if ``x`` is.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit one another.
    """
    if torch.onnx.is_in_onnx_export():
        return _exportable(x, kernels, scale_factor)
    return _forward(x, kernels, scale_factor)


def _check(x: Tensor, kernels: Tensor, scale_factor: int) -> None:
    """Raise RuntimeError unless the inputs fit the schema. Works on fake tensors."""
    shapes = f"x {tuple(x.shape)}, kernels {tuple(kernels.shape)}, scale_factor {scale_factor}"
    torch._check(
        x.dim() == 4
        and kernels.dim() == 4
        and scale_factor > 0
        and x.shape[2] > 0
        and x.shape[3] > 0
        and kernels.shape[0] == x.shape[0]
        and kernels.shape[2] == x.shape[2] * scale_factor
        and kernels.shape[3] == x.shape[3] * scale_factor,
        lambda: f"shapes do not fit one another: {shapes}",
    )
    taps = kernels.shape[1]
    torch._check(
        math.isqrt(taps) ** 2 == taps and taps % 2 == 1,
        lambda: f"kernels need k² weights with k odd, got {taps}",
    )
    torch._check(
        x.is_floating_point() and kernels.is_floating_point() and x.device == kernels.device,
        lambda: "expected floating-point tensors on one device",
    )


def _new_output(x: Tensor, scale_factor: int) -> Tensor:
    n, c, h, w = x.shape
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.empty(
        (n, c, h * scale_factor, w * scale_factor),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


@torch.library.custom_op("lda_aqu::content_aware_reassembly", mutates_args=())
def _forward(x: Tensor, kernels: Tensor, scale_factor: int) -> Tensor:
    _check(x, kernels, scale_factor)
    output = _new_output(x, scale_factor)
    for band in _bands(x, kernels):
        pixels = band.gather(x, 1)
        weights = band.center(band.gather(kernels, scale_factor))
        weights = weights.unflatten(2, (band.kernel_size, band.kernel_size))
        sums = pixels.new_empty((band.length, scale_factor**2, x.shape[1]))
        for u in range(band.kernel_size):
            sums.baddbmm_(weights[:, :, u], band.window_row(pixels, u), beta=min(u, 1))
        band.scatter(sums, output, scale_factor)
    return output


@_forward.register_fake
def _(x: Tensor, kernels: Tensor, scale_factor: int) -> Tensor:
    _check(x, kernels, scale_factor)
    return _new_output(x, scale_factor)


@torch.library.custom_op("lda_aqu::content_aware_reassembly_backward", mutates_args=())
def _backward(
    grad_output: Tensor, x: Tensor, kernels: Tensor, scale_factor: int
) -> tuple[Tensor, Tensor]:
    grad_x, grad_kernels = _new_gradients(x, kernels)
    with torch.autocast(x.device.type, enabled=False):  # which would cast the factors of ``@``
        for band in _bands(x, kernels):
            grads = band.gather(grad_output, scale_factor)
            grads_here = band.center(grads)
            weights = band.gather(kernels, scale_factor)
            pixels = band.gather(x, 1)
            grad_weights = torch.empty_like(band.center(weights))
            grad_pixels = torch.empty_like(band.center(pixels))
            for u in range(band.kernel_size):
                columns = slice(u * band.kernel_size, (u + 1) * band.kernel_size)
                grad_weights[:, :, columns] = grads_here @ band.window_row(pixels, u).mT
                grad_pixels.baddbmm_(
                    band.weights_seen_from(weights, u), band.window_row(grads, u), beta=min(u, 1)
                )
            band.scatter(grad_weights, grad_kernels, scale_factor)
            band.scatter(grad_pixels, grad_x, 1)
    return grad_x, grad_kernels


@_backward.register_fake
def _(grad_output: Tensor, x: Tensor, kernels: Tensor, scale_factor: int) -> tuple[Tensor, Tensor]:
    return _new_gradients(x, kernels)


def _new_gradients(x: Tensor, kernels: Tensor) -> tuple[Tensor, Tensor]:
    return _new_output(x, 1), _new_output(kernels, 1)


def _setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    x, kernels, ctx.scale_factor = inputs
    ctx.save_for_backward(x, kernels)


def _autograd(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(grad_output, *ctx.saved_tensors, ctx.scale_factor), None)


_forward.register_autograd(_autograd, setup_context=_setup_context)


class _Band:
    """Some rows of an image, or some whole images, as one list of pixels.

    In the list each row is followed by p zeros, and the band is framed by p rows of what lies
    around it, zero outside the map. So row u of the window around the list's pixel q is the k
    pixels from q + u * (W + p) on, whatever q: the windows of all pixels are overlapping views of
    the list, and no copy of them is made. There are results for the padding, too; they are dropped.
    """

    def __init__(self, images: slice, rows: range, x: Tensor, kernels: Tensor) -> None:
        self.images = images
        self.rows = rows
        self.kernel_size = math.isqrt(kernels.shape[1])
        self.padding = self.kernel_size // 2
        self.height, self.width = x.shape[2:]
        self.stride = self.width + self.padding  # of a row in the list
        self.dtype = torch.promote_types(torch.promote_types(x.dtype, kernels.dtype), torch.float32)
        self.framed_rows = len(rows) + 2 * self.padding
        num_images = len(range(x.shape[0])[images])
        self.framed = (num_images, self.framed_rows, self.stride)
        # From the first pixel of the band to its last row: what has a whole window in the list.
        self.length = (num_images * self.framed_rows - 2 * self.padding) * self.stride

    def gather(self, source: Tensor, scale_factor: int) -> Tensor:
        """(N, F, sH, sW) to the list, (pixels, s², F), with the s² pixels of each input pixel."""
        first = max(self.rows.start - self.padding, 0)
        last = min(self.rows.stop + self.padding, self.height)
        blocks = self._blocks(source[self.images], range(first, last), scale_factor)
        pixels = source.new_zeros(
            (math.prod(self.framed) + 2 * self.padding, *blocks.shape[3:]), dtype=self.dtype
        )
        image = pixels[self.padding : len(pixels) - self.padding].unflatten(0, self.framed)
        top = first - self.rows.start + self.padding
        image[:, top : top + last - first, : self.width] = blocks
        return pixels.flatten(1, 2)

    def scatter(self, result: Tensor, target: Tensor, scale_factor: int) -> None:
        """Write (length, s², F), results for the list's pixels, into (N, F, sH, sW)."""
        blocks = self._blocks(target[self.images], self.rows, scale_factor)
        pixel = result.stride(0)
        blocks.copy_(
            result.as_strided(
                blocks.shape,
                (
                    self.framed_rows * self.stride * pixel,
                    self.stride * pixel,
                    pixel,
                    scale_factor * result.stride(1),
                    *result.stride()[1:],
                ),
            )
        )

    def _blocks(self, maps: Tensor, rows: range, scale_factor: int) -> Tensor:
        """View of these rows of (N, F, sH, sW) as (N, rows, W, s, s, F)."""
        maps = maps[:, :, rows.start * scale_factor : rows.stop * scale_factor]
        maps = maps.unflatten(3, (self.width, scale_factor))
        return maps.unflatten(2, (len(rows), scale_factor)).permute(0, 2, 4, 3, 5, 1)

    def center(self, pixels: Tensor) -> Tensor:
        """The band's own part of a list: (length, s², F)."""
        return pixels.narrow(0, self.padding * (self.stride + 1), self.length)

    def window_row(self, pixels: Tensor, u: int) -> Tensor:
        """Row u of the window of each pixel: (length, k * s², F)."""
        _, block, features = pixels.shape
        return pixels.as_strided(
            (self.length, self.kernel_size * block, features),
            (block * features, features, 1),
            u * self.stride * block * features,
        )

    def weights_seen_from(self, weights: Tensor, u: int) -> Tensor:
        """With which weight each pixel enters what lies in row u of its window.

        (pixels, s², k²) to (length, 1, k * s²). What is at (u, v) in the window of a pixel has
        that pixel at (k - 1 - u, k - 1 - v) in its own.
        """
        _, block, taps = weights.shape
        return weights.as_strided(
            (self.length, self.kernel_size, block),
            (block * taps, block * taps - 1, taps),
            u * self.stride * block * taps + taps - 1 - u * self.kernel_size,
        ).reshape(self.length, 1, -1)


def _bands(x: Tensor, kernels: Tensor) -> Iterator[_Band]:
    """The bands that make up a batch, each some rows of an image or some whole images."""
    n, _, height, width = x.shape
    pixels = CPU_BAND_PIXELS if x.device.type == "cpu" else BAND_PIXELS
    num_rows = min(height, max(1, pixels // width))
    num_images = max(1, pixels // (height * width)) if num_rows == height else 1
    for image in range(0, n, num_images):
        for row in range(0, height, num_rows):
            rows = range(row, min(row + num_rows, height))
            yield _Band(slice(image, min(image + num_images, n)), rows, x, kernels)


def _exportable(x: Tensor, kernels: Tensor, scale_factor: int) -> Tensor:
    """The same in operators that exporters know, one weight of the window at a time."""
    _check(x, kernels, scale_factor)
    kernel_size = math.isqrt(kernels.shape[1])
    height, width = x.shape[2:]
    padded = F.pad(x, [kernel_size // 2] * 4).unsqueeze(2)
    kernels = F.pixel_unshuffle(kernels, scale_factor).unflatten(1, (-1, scale_factor**2))
    sums = 0
    for tap in range(kernel_size**2):
        u, v = divmod(tap, kernel_size)
        sums = sums + padded[..., u : u + height, v : v + width] * kernels[:, tap, None]
    return F.pixel_shuffle(sums.flatten(1, 2), scale_factor).to(x.dtype)
