"""The operators as compiled CPU kernels (``csrc/``). A file for each kind, as in :mod:`.plain`."""

from . import attention, offset_network, projection
from .library import DTYPES, instruction_set, unavailable, use_instruction_set

__all__ = [
    "DTYPES",
    "attention",
    "instruction_set",
    "offset_network",
    "projection",
    "unavailable",
    "use_instruction_set",
]
