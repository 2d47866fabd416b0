"""Layer normalisation over channels."""

from torch import Tensor, nn


class ChannelLayerNorm(nn.Module):
    """Layer normalisation over the channels of each position of (N, C, H, W)."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(num_channels)

    def forward(self, x: Tensor, num_groups: int = 1) -> Tensor:
        """Normalise (N, num_groups * num_channels, H, W) over the channels of each group."""
        grouped = x.permute(0, 2, 3, 1).unflatten(-1, (num_groups, x.shape[1] // num_groups))
        return self.norm(grouped).flatten(-2).permute(0, 3, 1, 2)
