"""Print what upsamplers take in memory beside their inputs, in sizes of the output, as JSON.

Each in a process of its own, of a map as P3 of an 800 x 1344 image: a list of the peaks of the
forward pass without gradients, and of those of the forward and the backward pass with them.
"""

import json
import multiprocessing
import sys
from collections.abc import Callable

import torch
from lda_aqu import build_upsampler
from lda_aqu.upsamplers import GuidedUpsampler
from torch import Tensor

CHANNELS, HEIGHT, WIDTH = 256, 50, 84


def read(field: str) -> int:
    """A number of KiB of what Linux says about this process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))


def peak_of(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """By how many KiB the memory grows at most, and what is returned."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak, VmHWM
    before = read("VmRSS")
    result = run()
    return read("VmHWM") - before, result


def measure(name: str) -> list[float]:
    module = build_upsampler(name, CHANNELS)
    factors = (1, 2) if isinstance(module, GuidedUpsampler) else (1,)

    def maps(height: int, width: int) -> list[Tensor]:
        sizes = ((height * factor, width * factor) for factor in factors)
        return [torch.randn(1, CHANNELS, *size, requires_grad=True) for size in sizes]

    module(*maps(8, 8)).sum().backward()
    inputs = maps(HEIGHT, WIDTH)
    with torch.no_grad():
        inference, y = peak_of(lambda: module(*inputs))
    del y
    forward, y = peak_of(lambda: module(*inputs))
    grad = torch.ones_like(y)
    backward, _ = peak_of(lambda: y.backward(grad))
    return [1024 * peak / y.nbytes for peak in (inference, forward, backward)]


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    with context.Pool(1, maxtasksperchild=1) as pool:
        print(json.dumps({name: pool.apply(measure, [name]) for name in sys.argv[1:]}))
