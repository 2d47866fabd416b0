"""What the CPU is."""

import platform
import re

from torch.utils import collect_env


def cpu_name() -> str:
    """The model of the CPU as its maker names it, or what else is known of it."""
    found = re.search(r"Model name:\s*(.+)", collect_env.get_cpu_info(collect_env.run) or "")
    return found[1] if found else platform.processor() or "unknown"
