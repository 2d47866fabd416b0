import random

import numpy as np
import torch
from lda_aqu.random_seeds import seeded


def test_seeds_and_puts_back_the_generators_of_the_cpu_alone(monkeypatch):
    def draw() -> list[float]:
        return [random.random(), np.random.rand(), torch.rand(()).item()]

    seeds_of_gpus = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds_of_gpus.append)
    with seeded(1):
        first = draw()
    with seeded(2), seeded(1):
        assert draw() == first
    random.seed(0), np.random.seed(0), torch.default_generator.manual_seed(0)
    expected = [*draw(), *draw()]
    random.seed(0), np.random.seed(0), torch.default_generator.manual_seed(0)
    before = draw()
    with seeded(1):
        assert draw() == first
    assert [*before, *draw()] == expected
    assert not seeds_of_gpus
