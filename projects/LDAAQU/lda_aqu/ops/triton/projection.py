"""Layer normalisation and projections on GPUs: launches the kernels of :mod:`.projection_kernels`.

One kernel forward. Backward there is one for the gradient of the map, one that sums up products
over a part of the pixels, and one that makes of all parts the gradients of the parameters: nothing
is added by atomic operations, and the results are the same each time.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..layout import Layout, compute_dtype, like, memory_format_of
from ..plain.projection import EPSILON
from . import projection_kernels as kernels
from .launch import index_dtype, launch, triton_dtype
from .maps import MAX_TILE_CHANNELS, dense, parts, product_types, side, starts


def unavailable(function: str, *inputs: Any) -> str:
    """Why a function cannot compute its inputs, or ""."""
    x = inputs[1] if function == "project_normalized_backward" else inputs[0]
    # Of float64 a tile of grad_map_kernel with more takes too much shared memory.
    most = MAX_TILE_CHANNELS // 2 if x.dtype == torch.float64 else MAX_TILE_CHANNELS
    if x.shape[1] > most:
        return f"the map has more than {most} channels"
    return ""


def project_normalized(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    widths: Sequence[int],
    dtype: torch.dtype,
) -> list[Tensor]:
    """See :func:`lda_aqu.ops.project_normalized`. Projects in ``dtype``."""
    size = (len(x), *x.shape[2:])
    layouts = (Layout((size[0], n, *size[1:]), dtype, torch.channels_last) for n in widths)
    outputs = [layout.empty(x.device) for layout in layouts]
    if x.numel():
        call = _Call(x, (norm_weight, norm_bias, weight), widths, dtype)
        call.forward(outputs)
    return outputs


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
    parameters = (norm_weight, norm_bias, weight)
    layouts = (like(x, memory_format_of(x)), *map(like, parameters))
    results = [layout.empty(x.device) for layout in layouts]
    if x.numel():
        _Call(x, parameters, widths, dtype).backward(grads, *results)
    else:
        for result in results:
            result.zero_()
    return results


class _Call:
    """The inputs as the kernels read them, and what is launched for each direction."""

    def __init__(
        self, x: Tensor, parameters: Sequence[Tensor], widths: Sequence[int], dtype: torch.dtype
    ) -> None:
        self.x, channels_last = dense(x)
        self.norm_weight, self.norm_bias, self.weight = (p.contiguous() for p in parameters)
        self.images, self.channels = x.shape[:2]
        self.pixels = math.prod(x.shape[2:])
        self.outputs = sum(widths)
        self.dtype = torch.promote_types(compute_dtype(x), dtype)
        elements = self.images * self.pixels * max(self.channels, *widths, 2)
        self.constants = {
            "CHANNELS": self.channels,
            "CHANNELS_LAST": channels_last,
            "STARTS": starts(widths),
            "WIDTHS": tuple(widths),
            "OUTPUTS": self.outputs,
            "EPSILON": EPSILON,
            "COMPUTE": triton_dtype(self.dtype),
            "INDEX": triton_dtype(index_dtype(elements)),
            **product_types(dtype),
        }

    def forward(self, outputs: Sequence[Tensor]) -> None:
        """Write the outputs."""
        self._launch(
            kernels.project_kernel,
            lambda blocks: (self._tiles(blocks), -(-self.outputs // blocks["BLOCK_OUTPUTS"])),
            *(self.x, self.norm_weight, self.norm_bias, self.weight, tuple(outputs), self.pixels),
            read=outputs[0],
            BLOCK_OUTPUTS=side(self.outputs, 128),
        )

    def backward(
        self,
        grads: Sequence[Tensor],
        grad_x: Tensor,
        grad_norm_weight: Tensor,
        grad_norm_bias: Tensor,
        grad_weight: Tensor,
    ) -> None:
        """Write the gradients but the first, those of the outputs."""
        grads = tuple(grad.contiguous(memory_format=torch.channels_last) for grad in grads)
        statistics = self._empty(self.images, 2, self.pixels)
        self._launch(
            kernels.grad_map_kernel,
            lambda blocks: (self._tiles(blocks),),
            *(grads, self.x, self.norm_weight, self.weight, grad_x, statistics, self.pixels),
            read=grads[0],
            BLOCK_CHANNELS=side(self.channels),
        )
        # Each of these for some outputs and channels alone: 8 blocks at the usual widths.
        programs = parts(self.images, self.pixels, self.x.device, 8)
        products = self._empty(programs, self.outputs, self.channels)
        sums = self._empty(programs, self.outputs)
        self._launch(
            kernels.grad_weight_kernel,
            lambda blocks: (
                programs,
                -(-self.outputs // blocks["BLOCK_OUTPUTS"]),
                -(-self.channels // blocks["BLOCK_CHANNELS"]),
            ),
            *(grads, self.x, statistics, products, sums, self.images, self.pixels),
            read=grads[0],
            BLOCK_OUTPUTS=side(self.outputs, 64),
        )
        self._launch(
            kernels.grad_parameters_kernel,
            lambda blocks: (-(-self.channels // blocks["BLOCK_CHANNELS"]),),
            *(products, sums, self.norm_weight, self.norm_bias, self.weight),
            *(grad_norm_weight, grad_norm_bias, grad_weight, programs),
            read=grads[0],
            BLOCK_OUTPUTS=side(self.outputs, 128),
        )

    def _launch(
        self, kernel: Any, programs: Any, *arguments: Any, read: Tensor, **constants: Any
    ) -> None:
        constants |= self.constants
        launch(kernel, programs, *arguments, read=read, width=self.channels, **constants)

    def _tiles(self, blocks: dict[str, Any]) -> int:
        """How many tiles all images have."""
        return self.images * -(-self.pixels // blocks["BLOCK_PIXELS"])

    def _empty(self, *shape: int) -> Tensor:
        return self.x.new_empty(shape, dtype=self.dtype)
