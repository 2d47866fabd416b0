"""Random numbers that are a function of what they are for, not of what was drawn before."""

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch


def derive_seed(*numbers: int) -> int:
    """A seed, below 2**32, from non-negative integers; others, or more, give another."""
    # A SeedSequence alone would take (1, 2) for (1, 2, 0).
    return int(np.random.SeedSequence((len(numbers), *numbers)).generate_state(1)[0])


def fork_cpu_rng() -> AbstractContextManager[None]:
    """Put torch's generator of the CPU back at the end, as if nothing had been drawn within.

    Networks make their upsamplers in it: with the same seed, all else in a model starts alike
    whatever its upsamplers are.
    """
    return torch.random.fork_rng(devices=[])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy and torch (CPU), and put them back at the end."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with fork_cpu_rng():
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed those of GPUs, too
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
