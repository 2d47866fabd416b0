"""On what a measurement was made, and how fast that is at best."""

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .implementations import describe_backends
from .measure import interleaved_times
from .workload import Setting


def describe_machine(setting: Setting) -> dict[str, Any]:
    """Processor, threads, versions and setting."""
    description = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "backends": describe_backends(setting.device),
    }
    if setting.device.startswith("cuda"):
        description["gpu"] = torch.cuda.get_device_name(setting.device)
        description["cuda"] = torch.version.cuda
    return description | asdict(setting)


def machine_text(machine: Mapping[str, Any]) -> str:
    """The machine as one line."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in machine.items())


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


@dataclass(frozen=True)
class Roofline:
    """What this process can do at best: multiply-adds of a matrix product, bytes of a copy.

    Both are of a second; a copy of one byte counts as two, one read and one written.
    """

    multiply_adds: float
    bytes: float

    def describe(self) -> dict[str, float]:
        """Both rates, for :func:`machine_text`."""
        return {
            "giga_multiply_adds_per_s_of_matmul": round(self.multiply_adds / 1e9, 1),
            "gb_per_s_of_copy": round(self.bytes / 1e9, 1),
        }

    def shortest_time(self, flops: float, bytes_moved: float) -> float:
        """Seconds that the arithmetic or the memory traffic takes at least, whichever is longer.

        Args:
            flops: multiply-adds.
            bytes_moved: bytes that must be read and written.
        """
        return max(flops / self.multiply_adds, bytes_moved / self.bytes)


def measure_roofline(
    setting: Setting, repeats: int, matrix_side: int = 2048, copied: int = 1 << 28
) -> Roofline:
    """Measure the rates of a square matrix product in the setting's dtype, and of a copy.

    Args:
        setting: device and dtype.
        repeats: number of runs, of which the fastest counts.
        matrix_side: side of the matrices.
        copied: bytes that are copied.
    """
    a = setting.randn(matrix_side, matrix_side, 1, 1, seed=0).flatten(1)
    product = torch.empty_like(a)
    source = torch.zeros(copied, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    times = interleaved_times(
        {"product": lambda: torch.mm(a, a, out=product), "copy": lambda: target.copy_(source)},
        repeats,
        setting.device,
        "roofline",
    )
    return Roofline(matrix_side**3 / min(times["product"]), 2 * copied / min(times["copy"]))
