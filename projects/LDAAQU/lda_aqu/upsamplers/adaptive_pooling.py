"""Adaptive pooling that exports to ONNX with any size."""

import torch
from torch import Tensor, nn


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """PyTorch's, to a square; in an export to ONNX it is written in products of matrices.

    Those keep to the size that comes, where the pooling would keep to the size exported with, or
    could not be exported.

    Args:
        output_size: side of the square.
    """

    def __init__(self, output_size: int) -> None:
        super().__init__(output_size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, output_size, output_size)."""
        if not torch.onnx.is_in_onnx_export():
            return super().forward(x)
        rows, columns = (_cells(extent, self.output_size, x) for extent in x.shape[2:])
        return rows @ x @ columns.T


def _cells(extent: int, size: int, like: Tensor) -> Tensor:
    """The cells that ``extent`` pixels are averaged over: (size, extent), each row of sum 1."""
    cell = torch.arange(size, device=like.device)[:, None]
    pixel = torch.arange(extent, device=like.device)
    first, end = cell * extent // size, ((cell + 1) * extent + size - 1) // size
    members = ((first <= pixel) & (pixel < end)).to(like.dtype)
    return members / members.sum(1, keepdim=True)
