"""Time and peak memory of anything that can be run."""

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

CLEAR_REFS = Path("/proc/self/clear_refs")


class Preparable(Protocol):
    """A description of something to run; it can be sent to another process."""

    def prepare(self) -> Callable[[], Any]:
        """Make what is needed, and return the function to be measured."""

    def smallest(self) -> "Preparable":
        """The same at the smallest size, to warm up with."""


def interleaved_times(
    functions: Mapping[str, Callable[[], Any]], repeats: int, device: str, description: str
) -> dict[str, list[float]]:
    """Run each function once unmeasured, then ``repeats`` times in turn with the others.

    Turns make other programs and changes of the clock frequency slow all alike.

    Returns:
        The seconds of each run, by name.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    rounds = [(turn, name) for turn in range(repeats + 1) for name in functions]
    for turn, name in tqdm(rounds, desc=description, unit="run", leave=False):
        _synchronize(device)
        start = time.perf_counter()
        functions[name]()
        _synchronize(device)
        if turn > 0:
            times[name].append(time.perf_counter() - start)
    return times


def summarize(seconds: list[float]) -> dict[str, float]:
    """Median, minimum and maximum of repeated measurements."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def peak_memory(work: Preparable, device: str, threads: int) -> int | None:
    """Bytes that a run needs at its peak beyond what was there before, its result included.

    On a CPU it is the peak of the resident memory of a fresh process which has run the smallest
    size before, so that code is loaded and no memory is left over to be used again; it thereby
    knows of every allocation, whoever makes it. None where the system is not Linux, which alone
    can reset the peak. On a GPU it is what PyTorch's allocator says.
    """
    if device.startswith("cuda"):
        return _peak_cuda_memory(work)
    if not CLEAR_REFS.exists():
        return None
    context = multiprocessing.get_context("forkserver")
    # Fresh processes are copies of a server that has imported what this one has, and run nothing.
    project = __name__.partition(".")[0]
    context.set_forkserver_preload([name for name in sys.modules if name.startswith(project)])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_resident_memory, work, threads).result()


def held_memory(run: Callable[[], Any]) -> int:
    """Bytes of the tensors that a forward pass keeps for its backward pass.

    Inputs and parameters that are kept count, each storage once.

    Args:
        run: runs forward and backward.
    """
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storages.values())


def _peak_cuda_memory(work: Preparable) -> int:
    run = work.prepare()
    run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_resident_memory(work: Preparable, threads: int) -> int:
    torch.set_num_threads(threads)
    work.smallest().prepare()()
    run = work.prepare()
    CLEAR_REFS.write_text("5")  # resets VmHWM, the peak of VmRSS
    before = _status("VmRSS")
    result = run()
    peak = _status("VmHWM")
    del result
    return max(peak - before, 0)


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
