import sys
from dataclasses import dataclass

import pytest
import torch
from lda_aqu.benchmark.implementations import parse_implementation
from lda_aqu.benchmark.machine import Roofline, measure_roofline
from lda_aqu.benchmark.measure import held_memory, interleaved_times, peak_memory, summarize
from lda_aqu.benchmark.shapes import Step
from lda_aqu.benchmark.workload import Setting, Workload

MIB = 2**20


def test_runs_take_turns_and_the_first_is_not_measured():
    order = []
    times = interleaved_times(
        {name: lambda name=name: order.append(name) for name in "abc"}, 2, "cpu", ""
    )
    assert "".join(order) == "abc" * 3
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2, "c": 2}


def test_summary():
    assert summarize([3.0, 1.0, 8.0]) == {"median": 3.0, "min": 1.0, "max": 8.0}


@dataclass(frozen=True)
class Allocation:
    """Holds so many MiB at its peak, half of them in its result."""

    mib: int

    def smallest(self):
        return Allocation(2)

    def prepare(self):
        def run():
            temporary = torch.ones(self.mib * MIB // 2, dtype=torch.uint8)
            return temporary.clone()

        return run


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux gives it")
def test_peak_memory():
    assert peak_memory(Allocation(96), "cpu", 1) == pytest.approx(96 * MIB, rel=0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux gives it")
def test_peak_memory_of_an_upsampler():
    workload = Workload(parse_implementation("Nearest"), Step("", 64, (128, 128), (256, 256)))
    output = 64 * 256 * 256 * 4
    assert peak_memory(workload, "cpu", 1) == pytest.approx(output, rel=0.15)


def test_held_memory_counts_each_storage_once():
    x = torch.rand(1000, requires_grad=True)

    def run():
        y = x.exp()  # keeps y
        (y * y.view(10, 100).flatten()).sum().backward()  # keeps y, and y again

    assert held_memory(run) == 4000


def test_roofline_takes_the_longer_of_arithmetic_and_traffic():
    roofline = Roofline(multiply_adds=100.0, bytes=10.0)
    assert roofline.shortest_time(flops=200, bytes_moved=10) == 2
    assert roofline.shortest_time(flops=200, bytes_moved=50) == 5


def test_measured_roofline():
    roofline = measure_roofline(Setting(), 2, matrix_side=128, copied=MIB)
    assert 1e7 < roofline.multiply_adds < 1e14
    assert 1e7 < roofline.bytes < 1e13
