"""How maps, and sums over their pixels, are told to kernels that work on :mod:`.tiles`."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .launch import launch, triton_dtype
from .tiles import sum_parts_kernel

MAX_TILE_CHANNELS = 1024  # of a tile that has all channels
MAX_SHARED_BYTES = 96 * 1024  # of a block, which all GPUs from compute capability 8.0 on have


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """(N, C, H, W) ``x``, copied where it has gaps, and whether it is channels-last."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return x, True
    return x.contiguous(), False


def product_types(dtype: torch.dtype) -> dict[str, Any]:
    """Constants of kernels with matrix products of numbers of this dtype."""
    matmul = torch.backends.cuda.matmul
    has_precision = hasattr(matmul, "fp32_precision")  # from PyTorch 2.9 on
    is_tf32 = matmul.fp32_precision == "tf32" if has_precision else matmul.allow_tf32
    is_tf32 = is_tf32 and dtype == torch.float32
    return {"DOT": triton_dtype(dtype), "PRECISION": "tf32" if is_tf32 else "ieee"}


def starts(widths: Sequence[int]) -> tuple[int, ...]:
    """Where parts of these widths begin that lie side by side."""
    return tuple(sum(widths[:i]) for i in range(len(widths)))


def side(size: int, largest: int = MAX_TILE_CHANNELS) -> int:
    """Of a tile that has ``size`` channels, or some of them; matrix products need 16."""
    return max(16, min(1 << (size - 1).bit_length(), largest))


def parts(images: int, pixels: int, device: torch.device, blocks: int = 1) -> int:
    """How many programs share the pixels of all images, and sum up each over its own.

    Four for each multiprocessor where each of several ``blocks`` of sums has so many; but none for
    less than 64 pixels.
    """
    return max(1, min(4 * _multiprocessors(device) // blocks, images * pixels // 64))


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":  # under the interpreter
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def sum_parts(sums: Tensor, results: Sequence[Tensor]) -> None:
    """Write the sums over the rows of ``sums``, the columns of which are those of the results."""
    sizes = tuple(result.numel() for result in results)
    launch(
        sum_parts_kernel,
        lambda blocks: (-(-sums.shape[1] // blocks["BLOCK"]),),
        *(sums, tuple(results), len(sums)),
        read=sums,
        width=sums.shape[1],
        STARTS=starts(sizes),
        SIZES=sizes,
        TOTAL=sums.shape[1],
    )
