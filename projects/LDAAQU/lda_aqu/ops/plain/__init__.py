"""The operators in plain PyTorch, for any device, a module for each."""

from . import attention, normalized_projection, offset_network

__all__ = ["attention", "normalized_projection", "offset_network"]
