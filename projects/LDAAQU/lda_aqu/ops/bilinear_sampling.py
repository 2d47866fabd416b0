"""Reading maps bilinearly at positions of one's own, as local deformable attention.

Shape shorthand:
    N: batch; C: channels; g: groups
    H, W: input size; Y, X: output size
"""

import torch
from torch import Tensor

from .attention import local_deformable_attention
from .operator import check


def sample_bilinear(x: Tensor, positions: Tensor, backend: str = "auto") -> Tensor:
    """Read one position of the input for each output pixel.

    It is :func:`local_deformable_attention` to a single point, whose weight is 1; gradients,
    exports, transforms of functions and derivatives of any order are as there. Beyond the border
    the map is constant. Coordinates are in float32, or in float64 if an input is.

    Args:
        x: (N, C, H, W), floating point; C is a multiple of g.
        positions: (N, g, 2, Y, X), (y, x) in input pixels. Group c of g reads its own C / g
            contiguous channels.
        backend: as for :func:`local_deformable_attention`.

    Returns:
        (N, C, Y, X) with the dtype and the memory format of ``x``.

    Raises:
        RuntimeError: shapes do not fit one another, or one pixel is to be read from more: of an
            output of size 1 the operator reads the first, whatever the offset.
    """
    check(
        x.dim() == 4 and positions.dim() == 5 and positions.shape[2] == 2,
        lambda: (
            "expected x (N, C, H, W) and positions (N, g, 2, Y, X), "
            f"got {tuple(x.shape)} and {tuple(positions.shape)}"
        ),
    )
    n, groups, _, *output_size = positions.shape
    dtype = torch.promote_types(positions.dtype, torch.float32)
    offsets = []
    for axis, (size, end) in enumerate(zip(output_size, x.shape[2:], strict=True)):
        check(size > 1 or end == 1, lambda: f"cannot read 1 pixel from {tuple(x.shape)}")
        pixel = torch.arange(size, dtype=dtype, device=x.device)
        inside = positions[:, :, axis].to(dtype).clamp(min=0).clamp(max=end - 1)
        # The operator's own mapping of output to input pixels, undone.
        to_output = (size - 1) / max(end - 1, 1)
        offsets.append(inside * to_output - (pixel[:, None] if axis == 0 else pixel))
    nothing = x.new_zeros(())
    return local_deformable_attention(
        nothing.expand(n, groups, *output_size),
        nothing.expand(n, groups, *x.shape[2:]),
        x,
        torch.stack(offsets, 2)[:, :, None],
        position_bias=None,
        num_heads=1,
        backend=backend,
    )
