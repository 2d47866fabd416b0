import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from lda_aqu.benchmark.implementations import parse_implementation
from lda_aqu.benchmark.machine import COPY, PRODUCT, measure_roofline, shortest_time
from lda_aqu.benchmark.measure import held_memory, interleaved_times, measure
from lda_aqu.benchmark.module_workload import ModuleWorkload
from lda_aqu.benchmark.settings import Setting, Step

MIB = 2**20


def test_runs_take_turns_and_the_first_is_not_measured():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    times = interleaved_times(runs, 2, "cpu", "")
    assert "".join(order) == "abc" * 3
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2, "c": 2}


def test_on_a_gpu_events_enclose_the_run_and_nothing_else(monkeypatch):
    order = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            order.append("record")

        def synchronize(self):
            order.append("wait")

        def elapsed_time(self, end):
            return 8.0  # ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "zeros", lambda *args, device, **kwargs: order.append("clear"))
    times = interleaved_times({"a": lambda: order.append("run")}, 2, "cuda", "")
    assert times == {"a": [0.008, 0.008]}
    assert order == ["clear", "record", "run", "record", "wait"] * (5 + 2)


@dataclass(frozen=True)
class Allocation:
    """Holds so many MiB at its peak, half of them in its result."""

    mib: int
    setting: Setting

    def smallest(self):
        return Allocation(2, self.setting)

    def prepare(self):
        def run():
            temporary = torch.ones(self.mib * MIB // 2, dtype=torch.uint8)
            return temporary.clone()

        return run


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux gives it")
def test_peak_memory():
    workload = Allocation(96, Setting())
    upsampler = ModuleWorkload(
        parse_implementation("Nearest"), Step("", 64, (128, 128), (256, 256)), Setting()
    )
    costs = measure({"a": workload, "b": upsampler}, 1, "")
    assert costs["a"]["peak MiB"] == pytest.approx(96, rel=0.02)
    assert costs["b"]["peak MiB"] == pytest.approx(64 * 256 * 256 * 4 / MIB, rel=0.15)
    assert 0 < costs["a"]["min ms"] == costs["a"]["median ms"] == costs["a"]["max ms"]


def test_peak_memory_on_a_gpu_is_that_of_its_allocator(monkeypatch):
    state = SimpleNamespace(allocated=100, peak=1000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: state.allocated)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: state.peak)
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda: setattr(state, "peak", state.allocated)
    )
    monkeypatch.setattr("lda_aqu.benchmark.measure.interleaved_times", lambda *_: {"a": [1.0]})

    class Run:
        setting = Setting("cuda")

        def smallest(self):
            return self

        def prepare(self):
            return lambda: setattr(state, "peak", state.peak + 3 * MIB)

    assert measure({"a": Run()}, 1, "")["a"]["peak MiB"] == 3


def test_held_memory_counts_each_storage_once():
    x = torch.rand(1000, requires_grad=True)

    def run():
        y = x.exp()  # keeps y
        (y * y.view(10, 100).flatten()).sum().backward()  # keeps y, and y again

    assert held_memory(run) == 4000


def test_the_shortest_time_is_the_longer_of_arithmetic_and_traffic():
    step, setting = Step("", 250, (5, 10), (10, 15)), Setting(autocast="float16", batch_size=10)
    assert 10 * 250 * (50 + 150) * 2 == 1e6  # bytes, at 2 GB a second
    for flops, ms in ((1e5, 0.5), (1e6, 1.0)):
        assert shortest_time({PRODUCT: 1.0, COPY: 2.0}, flops, step, setting) == pytest.approx(ms)


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_the_roofline_is_measured(autocast):
    rates = measure_roofline(Setting(autocast=autocast), 2, side=128, copied=MIB)
    assert 0.01 < rates[PRODUCT] < 1e5
    assert 0.01 < rates[COPY] < 1e4
