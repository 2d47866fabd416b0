"""The operators as Triton kernels for GPUs. A file for each kind of operator, as in :mod:`.plain`.

Triton, which need not be installed, is not imported until it is asked for.
"""

import importlib
import os

import torch
from torch.torch_version import TorchVersion

MIN_VERSION = (3, 5)  # that of PyTorch 2.9: others multiply no float64, or have no nested constants
MIN_CAPABILITY = (8, 0)  # the oldest of NVIDIA's GPUs that Triton supports


def is_interpreted() -> bool:
    """Whether Triton interprets its kernels, on any device, in the place of compiling them."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def unavailable(device: torch.device) -> str:
    """Why the kernels cannot run on a device, or ""."""
    try:
        version = importlib.import_module("triton").__version__
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    if TorchVersion(version) < MIN_VERSION:
        return f"Triton {version} is older than {'.'.join(map(str, MIN_VERSION))}"
    if is_interpreted():
        return ""
    if device.type != "cuda":
        return f"Triton compiles for GPUs, not for {device.type}"
    if not torch.cuda.is_available():
        return "no GPU is available to PyTorch"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return f"{name} has a compute capability below {'.'.join(map(str, MIN_CAPABILITY))}"
    return ""
