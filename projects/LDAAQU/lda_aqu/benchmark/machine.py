"""On what a measurement was made, and how fast that is at best."""

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch.utils import collect_env

from ..cpu import cpu_name
from .implementations import backend_reasons
from .measure import interleaved_times
from .settings import Setting, Step

PRODUCT = "giga_multiply_adds_per_s_of_matmul"
COPY = "gb_per_s_of_copy"


def describe_machine(setting: Setting) -> dict[str, Any]:
    """Processor or GPU, threads, versions and setting."""
    description = {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
    }
    if setting.device == "cuda":
        description["gpu"] = torch.cuda.get_device_name()
        description["driver"] = collect_env.get_nvidia_driver_version(collect_env.run)
        description["cuda"] = torch.version.cuda
    for name, reason in backend_reasons(setting.device).items():
        description[f"backend_{name}"] = f"cannot run: {reason}" if reason else "runs"
    return description | asdict(setting)


def measure_roofline(
    setting: Setting, repeats: int, side: int | None = None, copied: int = 2**28
) -> dict[str, float]:
    """What the device does at best, as :data:`PRODUCT` and :data:`COPY`: the fastest of the runs.

    The product is of square matrices of ``side``, by default 2048, on a GPU 8192, in the dtype of
    the maps. Each of the bytes that are copied counts as two: one is read and one written.
    """
    side = side or {"cpu": 2048, "cuda": 8192}[setting.device]
    a = torch.randn(side, side).to(setting.device, setting.map_dtype)
    source = torch.zeros(copied, dtype=torch.uint8, device=setting.device)
    product, target = torch.empty_like(a), torch.empty_like(source)
    runs = {PRODUCT: lambda: torch.mm(a, a, out=product), COPY: lambda: target.copy_(source)}
    times = interleaved_times(runs, repeats, setting.device, "roofline")
    work = {PRODUCT: side**3, COPY: 2 * copied}
    return {name: round(work[name] / min(times[name]) / 1e9, 1) for name in work}


def shortest_time(
    roofline: Mapping[str, float], flops: float, step: Step, setting: Setting
) -> float:
    """Milliseconds that the multiply-adds take at least, or reading input and writing output."""
    pixels = sum(height * width for height, width in (step.input_size, step.output_size))
    moved = setting.batch_size * step.channels * pixels * setting.map_dtype.itemsize
    return max(flops / roofline[PRODUCT], moved / roofline[COPY]) / 1e6
