"""What upsamplers take in memory beside their inputs, of a map as P3 of an 800 x 1344 image."""

import ctypes
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lda_aqu import build_upsampler
from lda_aqu.ops import BACKENDS
from lda_aqu.upsamplers import GuidedUpsampler
from torch import Tensor

# In outputs: of the forward pass, with and without gradients, and of the backward pass. All the
# pixels that an upsampler reads would be 9 outputs (LDAAQU, A2U) or 25, their gradient as much.
BOUNDS = {
    "LDAAQU": (2.4, 4),
    "CARAFE": (2.6, 4),
    "SAPAB": (3.6, 5),
    "FADE": (3.2, 7.5),
    "FreqFusion": (6.5, 5.5),
    "A2U": (6, 9),
}
if BACKENDS["cpp"].unavailable(torch.device("cpu")):
    BOUNDS["LDAAQU"] = (6, 8)  # plain PyTorch, one point of the values at a time
CHANNELS, HEIGHT, WIDTH = 256, 50, 84
M_MMAP_THRESHOLD = -3


def read(field: str) -> int:
    """A number of KiB of what Linux says about this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_of(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """By how many KiB the memory grows at most, and what is returned."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
    before = read("VmRSS")
    result = run()
    return read("VmHWM") - before, result


def measure(name: str) -> list[float]:
    """The peaks of the forward pass without gradients and with them, and of the backward pass."""
    # What is freed goes back to the system at once, or later peaks would be less than was taken.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)
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


@pytest.mark.cpu
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux gives it")
@pytest.mark.parametrize("name", BOUNDS)
def test_what_is_read_is_never_in_memory_at_once(name):
    with multiprocessing.get_context("fork").Pool(1) as pool:  # which has nothing to give back
        inference, forward, backward = peaks = pool.apply(measure, [name])
    largest_forward, largest_backward = BOUNDS[name]
    assert 1 <= inference < largest_forward and 1 <= forward < largest_forward, peaks
    assert backward < largest_backward, peaks
