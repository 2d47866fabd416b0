"""Whether a loss reaches every parameter of a model."""

from collections.abc import Callable

from lda_aqu import LDAAQU
from torch import Tensor, nn


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
