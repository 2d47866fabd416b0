"""The operators in plain PyTorch, for any device: what every other backend is compared with.

A file for each kind of operator; its functions are named as the operators, and compute in ordinary
differentiable PyTorch, so that exporters and transforms of functions can act on them.
"""

import torch


def unavailable(device: torch.device) -> str:
    """Why it cannot run on a device: it can on any, so ""."""
    return ""
