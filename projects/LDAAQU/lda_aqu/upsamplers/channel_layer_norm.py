"""Layer normalisation over channels."""

from torch import Tensor, nn


class ChannelLayerNorm(nn.Module):
    """Layer normalisation over the channels of each position of (N, C, H, W)."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(num_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, num_channels, H, W) to the same."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
