"""Normalisation by the compiled CPU kernels, and projections by PyTorch's matrix products.

The norm's weight and bias are moved into the projections: with the map s of mean 0 and variance 1,
W (weight * s + bias) = (W weight) s + W bias. So the kernels need neither, nor do they find their
gradients: those follow from that of W weight. The map s exists for some pixels at a time.
"""

import ctypes
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..autocast import without_autocast
from ..layout import memory_format_of
from ..plain.projection import EPSILON
from .library import DTYPES, Call, Problem, fields, in_huge_pages

CHUNK = 2**19
"""Elements of the normalised map that exist at once: few enough for a CPU's cache."""


class ProjectionProblem(Problem):
    """The struct of csrc/projection/problem.h."""

    operator = "projection"
    _fields_ = (
        *fields(ctypes.c_int64, "channels height width first count threads dtype"),
        *fields(ctypes.c_int64 * 4, "map_strides"),
        *fields(ctypes.c_double, "epsilon"),
        *fields(ctypes.c_void_p, "map normalized inverse grad"),
    )


def project_normalized(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    widths: Sequence[int],
    dtype: torch.dtype,
) -> list[Tensor]:
    """See :func:`lda_aqu.ops.project_normalized`. Computes in float32 at least."""
    with without_autocast(x):
        pixels = _Pixels(x)
        matrices = weight.flatten(1).to(pixels.dtype).split(list(widths))
        # In the order in which the products read them fastest.
        scaled = [(matrix * norm_weight.to(pixels.dtype)).T.contiguous() for matrix in matrices]
        biases = [matrix @ norm_bias.to(pixels.dtype) for matrix in matrices]
        outputs = [in_huge_pages(pixels.new_empty(len(matrix))) for matrix in matrices]
        for chunk, normalized in pixels.standardize():
            for output, matrix, bias in zip(outputs, scaled, biases, strict=True):
                torch.addmm(bias, normalized, matrix, out=output[chunk])
    size = (len(x), *x.shape[2:])
    return [output.unflatten(0, size).permute(0, 3, 1, 2).to(dtype) for output in outputs]


def project_normalized_backward(
    grads: Sequence[Tensor],
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    widths: Sequence[int],
    dtype: torch.dtype,
) -> list[Tensor]:
    """Gradients of the map, of the norm's weight and bias, and of the projections' weights."""
    with without_autocast(x):
        pixels = _Pixels(x)
        dtype = pixels.dtype
        scale, shift = norm_weight.to(dtype), norm_bias.to(dtype)
        matrices = weight.flatten(1).to(dtype).split(list(widths))
        scaled = [matrix * scale for matrix in matrices]
        rows = [grad.permute(0, 2, 3, 1).flatten(0, 2).to(dtype) for grad in grads]
        products = [torch.zeros_like(matrix) for matrix in matrices]  # grad times s
        grad_x = torch.empty_like(pixels.map, memory_format=memory_format_of(x))
        grad_x, buffer = in_huge_pages(grad_x), pixels.new_chunk()
        for chunk, normalized in pixels.standardize():
            for row, product in zip(rows, products, strict=True):
                product.addmm_(row[chunk].T, normalized)
            grad = buffer[: len(normalized)]
            torch.mm(rows[0][chunk], scaled[0], out=grad)
            for row, matrix in zip(rows[1:], scaled[1:], strict=True):
                grad.addmm_(row[chunk], matrix)
            pixels.backward(chunk, normalized, grad, grad_x)
        sums = [row.sum(0) for row in rows]
        triples = list(zip(matrices, products, sums, strict=True))
        grad_weights = [product * scale + torch.outer(s, shift) for _, product, s in triples]
        grad_weight = sum((matrix * product).sum(0) for matrix, product, _ in triples)
        grad_bias = sum(s @ matrix for matrix, _, s in triples)
    return [
        grad_x.to(x.dtype),
        grad_weight.to(norm_weight.dtype),
        grad_bias.to(norm_bias.dtype),
        torch.cat(grad_weights).view(weight.shape).to(weight.dtype),
    ]


class _Pixels:
    """The pixels of a map, in the order (N, H, W), and the kernels that run over them."""

    def __init__(self, x: Tensor) -> None:
        self.map = x if x.dtype in DTYPES else x.float()
        self.dtype = torch.promote_types(self.map.dtype, torch.float32)
        batch, channels, height, width = x.shape
        self.count = batch * height * width
        self._step = max(1, CHUNK // max(1, channels))  # pixels of a chunk
        self._inverse = torch.empty(self.count, dtype=self.dtype)

    def new_empty(self, channels: int) -> Tensor:
        """(pixels, channels)."""
        return torch.empty((self.count, channels), dtype=self.dtype)

    def new_chunk(self) -> Tensor:
        """(pixels of a chunk, C)."""
        size = (min(self._step, self.count), self.map.shape[1])
        return torch.empty(size, dtype=self.dtype)

    def standardize(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the pixels, and each pixel's channels with mean 0 and variance 1.

        The tensor is overwritten by the next.
        """
        buffer = self.new_chunk()
        for first in range(0, self.count, self._step):
            chunk = slice(first, min(first + self._step, self.count))
            normalized = buffer[: chunk.stop - first]
            self._run("standardize", chunk, self.map, normalized)
            yield chunk, normalized

    def backward(self, chunk: slice, normalized: Tensor, grad: Tensor, grad_map: Tensor) -> None:
        """From the gradient of what :meth:`standardize` gave to that of the map; spoils it."""
        self._run("standardize_backward", chunk, grad_map, normalized, grad=grad)

    def _run(
        self, function: str, chunk: slice, target: Tensor, normalized: Tensor, **tensors: Tensor
    ) -> None:
        _, channels, height, width = target.shape
        problem = ProjectionProblem(
            channels=channels,
            height=height,
            width=width,
            first=chunk.start,
            count=chunk.stop - chunk.start,
            threads=torch.get_num_threads(),
            dtype=DTYPES.index(target.dtype),
            epsilon=EPSILON,
        )
        call = Call(problem)
        call.set_tensor("map", target, "map_strides")
        inverse = self._inverse[chunk]
        for name, tensor in {"normalized": normalized, "inverse": inverse, **tensors}.items():
            call.set_tensor(name, tensor)
        call.run(function, has_workspace=False)
