"""Time and peak memory of anything that can be run, on a CPU or a GPU."""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from .settings import Setting

MIB = 2**20
CLEAR_REFS = Path("/proc/self/clear_refs")


class Workload(Protocol):
    """A description of something to run, small enough to be sent to another process."""

    setting: Setting

    def prepare(self) -> Callable[[], Any]:
        """Make what is needed, and return the function to be measured."""

    def smallest(self) -> "Workload":
        """The same at the smallest size, to warm up with."""


def measure(
    work: Mapping[str, Workload], repeats: int, description: str
) -> dict[str, dict[str, float | None]]:
    """Time and memory of workloads of one setting, by name, as columns of a table.

    "median ms", "min ms" and "max ms" are of runs that take turns, "peak MiB" is of the first run.
    """
    device = next(iter(work.values())).setting.device
    runs = {label: workload.prepare() for label, workload in work.items()}
    times = interleaved_times(runs, repeats, device, description)
    del runs
    result = {}
    for label, workload in tqdm(work.items(), desc=f"{description}, memory", leave=False):
        peak = peak_memory(workload)
        result[label] = {
            "median ms": 1e3 * statistics.median(times[label]),
            "min ms": 1e3 * min(times[label]),
            "max ms": 1e3 * max(times[label]),
            "peak MiB": None if peak is None else peak / MIB,
        }
    return result


def interleaved_times(
    functions: Mapping[str, Callable[[], Any]], repeats: int, device: str, description: str
) -> dict[str, list[float]]:
    """Seconds of ``repeats`` runs of each function, which it runs in turn with the others.

    Turns make other programs and changes of the clock frequency slow all alike. The first turns
    are not measured: one on a CPU, five on a GPU.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    warm_ups = {"cpu": 1, "cuda": 5}[device]
    for turn in tqdm(range(warm_ups + repeats), desc=description, leave=False):
        for name, function in functions.items():
            seconds = _time(function, device)
            if turn >= warm_ups:
                times[name].append(seconds)
    return times


def _time(function: Callable[[], Any], device: str) -> float:
    """Seconds that a run takes; on a GPU between two events, with its inputs not in the cache.

    While the GPU clears a buffer larger than its cache, the CPU gets ahead with launching; where
    launching takes longer than what is launched, the time is that of launching.
    """
    if device == "cpu":
        started = time.perf_counter()
        function()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.zeros(256 * MIB, dtype=torch.uint8, device=device)
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def peak_memory(work: Workload) -> int | None:
    """Bytes that the first run needs at its peak beyond what was there before, its result included.

    The smallest size has been run before, so that code and workspaces are loaded. On a GPU it is
    what PyTorch's allocator says. On a CPU it is the peak of the resident memory of a fresh
    process, in which no memory is left over to be used again; it thereby knows of every allocation,
    whoever makes it. None where the system is not Linux, which alone can reset that peak.
    """
    threads = torch.get_num_threads()
    if work.setting.device == "cuda":
        return _peak(work, threads)
    if not CLEAR_REFS.exists():
        return None
    context = multiprocessing.get_context("forkserver")
    # Fresh processes are copies of a server that has imported what this one has, and run nothing.
    project = __name__.partition(".")[0]
    context.set_forkserver_preload([name for name in sys.modules if name.startswith(project)])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak, work, threads).result()


def _peak(work: Workload, threads: int) -> int:
    torch.set_num_threads(threads)
    work.smallest().prepare()()
    run = work.prepare()
    if work.setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    CLEAR_REFS.write_text("5")  # resets VmHWM, the peak of VmRSS
    before = _status("VmRSS")
    run()
    return max(_status("VmHWM") - before, 0)


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def held_memory(run: Callable[[], Any]) -> int:
    """Bytes of the tensors that a forward pass keeps for its backward pass; ``run`` does both.

    Inputs and parameters that are kept count, each storage once.
    """
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storages.values())
