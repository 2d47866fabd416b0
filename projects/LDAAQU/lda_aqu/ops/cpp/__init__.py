"""The operators as compiled CPU kernels (``csrc/``). A file for each kind, as in :mod:`.plain`."""

from .library import DTYPES, instruction_set, unavailable, use_instruction_set

__all__ = ["DTYPES", "instruction_set", "unavailable", "use_instruction_set"]
