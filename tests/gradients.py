"""Checks of gradients."""

from collections.abc import Callable
from functools import partial

import torch
from lda_aqu import LDAAQU
from torch import Tensor, nn

# Along random directions. On a GPU sums are in any order, and differ from one to the next.
_OPTIONS = {"fast_mode": True, "nondet_tol": 1e-10}
gradcheck = partial(torch.autograd.gradcheck, **_OPTIONS)
gradgradcheck = partial(torch.autograd.gradgradcheck, **_OPTIONS)


def unreached_parameters(model: nn.Module, loss: Callable[[], Tensor]) -> list[str]:
    """Names of the parameters whose gradient is missing or zero everywhere.

    ``loss`` computes it, after the weights that LDA-AQU starts at zero, which stop gradients, have
    been given other values.
    """
    for module in model.modules():
        if isinstance(module, LDAAQU):
            nn.init.normal_(module.conv_offset[3].weight, std=0.1)
    loss().backward()
    return [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
