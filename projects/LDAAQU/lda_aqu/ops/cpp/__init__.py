"""The compiled CPU kernels of ``csrc/``, a module for each operator.

Each has ``forward`` and ``backward`` as its namesake in :mod:`lda_aqu.ops.plain`.
"""

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
