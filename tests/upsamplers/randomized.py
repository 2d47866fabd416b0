"""Modules whose every parameter matters, and what they are to compute."""

from collections.abc import Callable

import numpy as np
import torch
from lda_aqu import build_upsampler
from lda_aqu.upsamplers import Upsampler
from torch import Tensor, nn


def randomized(name: str, *args: object, std: float = 0.3, **options: object) -> Upsampler:
    """An upsampler with random parameters, as some start at zero; the generator is seeded."""
    torch.manual_seed(0)
    module = build_upsampler(name, *args, **options)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module


def assert_matches(module: Upsampler, loops: Callable[..., np.ndarray], *maps: Tensor) -> None:
    """Assert that each image becomes what ``loops`` makes of its arrays and the module's state."""
    state = {key: value.numpy(force=True) for key, value in module.state_dict().items()}
    with torch.no_grad():
        outputs = module(*maps)
    for n, y in enumerate(outputs):
        expected = loops(*(m[n].numpy(force=True) for m in maps), state)
        torch.testing.assert_close(y, torch.as_tensor(expected), rtol=1e-9, atol=1e-11)
