"""The table of launch configurations: for each kernel how it is launched, on which device.

The rows were chosen by what the compiler makes of them for sm_90 at 256 channels: none spills
registers. None has been timed.
"""

from dataclasses import dataclass, field

import triton

HALF = 2  # bytes of an element in half precision
FLOAT = 4


@dataclass(frozen=True)
class Row:
    """A configuration of a kernel, and for which calls it is meant."""

    blocks: dict[str, int] = field(default_factory=dict)
    """Values of the kernel's parameters that are chosen here."""
    num_warps: int = 4
    num_stages: int = 1
    max_registers: int | None = None
    """Of a thread. Left to choose, the compiler for NVIDIA's GPUs may spill some to save others."""
    max_itemsize: int = 8
    """Bytes of an element of what is read, at most."""
    max_width: int = 2**31
    """Channels of what is read, at most."""
    min_capability: tuple[int, int] = (0, 0)
    """Of an NVIDIA GPU; for all others, and the interpreter, this is (0, 0)."""

    def config(self) -> triton.Config:
        """The same as Triton has it."""
        return triton.Config(
            self.blocks,
            num_warps=self.num_warps,
            num_stages=self.num_stages,
            maxnreg=self.max_registers,
        )


# Of the attention: tiles of pixels by rows and columns, the latter so that a row is at least 32
# bytes of a map; channels at once; and of these, those that lie side by side for the lanes of one
# pixel.
_PIXELS = (
    Row(
        {"TILE_ROWS": 8, "TILE_COLUMNS": 16, "PASS_BYTES": 256, "CHUNK_BYTES": 64},
        num_warps=16,
        max_itemsize=HALF,
        min_capability=(8, 0),
    ),
    Row(
        {"TILE_ROWS": 4, "TILE_COLUMNS": 16, "PASS_BYTES": 512, "CHUNK_BYTES": 128},
        num_warps=16,
        max_registers=128,
        min_capability=(8, 0),
    ),
    Row({"TILE_ROWS": 4, "TILE_COLUMNS": 16, "PASS_BYTES": 256, "CHUNK_BYTES": 64}, num_warps=8),
)

TABLE: dict[str, tuple[Row, ...]] = {
    "forward_kernel": _PIXELS,
    "backward_pixels_kernel": _PIXELS,
    "samples_kernel": (Row({"PIXELS": 64}),),
    "backward_bias_kernel": (Row({"PIXELS": 64}),),
    "backward_source_kernel": (
        Row({"PASS_BYTES": 512, "CHUNK_BYTES": 128, "STRIP": 8, "SAMPLES": 16}, num_warps=1),
    ),
    "project_kernel": (
        Row({"BLOCK_PIXELS": 64, "BLOCK_CHANNELS": 32}, 8, max_itemsize=HALF),
        Row({"BLOCK_PIXELS": 64, "BLOCK_CHANNELS": 16}, 8, max_itemsize=FLOAT),
        Row({"BLOCK_PIXELS": 16, "BLOCK_CHANNELS": 16}),
    ),
    "grad_map_kernel": (
        Row({"BLOCK_PIXELS": 32, "BLOCK_OUTPUTS": 32}, 8, max_itemsize=HALF, max_width=256),
        Row({"BLOCK_PIXELS": 32, "BLOCK_OUTPUTS": 16}, 8, max_itemsize=FLOAT, max_width=256),
        Row({"BLOCK_PIXELS": 16, "BLOCK_OUTPUTS": 16}, 8),
    ),
    "grad_weight_kernel": (
        Row({"BLOCK_PIXELS": 64, "BLOCK_CHANNELS": 64}, max_itemsize=HALF),
        Row({"BLOCK_PIXELS": 16, "BLOCK_CHANNELS": 64}, max_itemsize=FLOAT),
        Row({"BLOCK_PIXELS": 16, "BLOCK_CHANNELS": 32}),
    ),
    "grad_parameters_kernel": (Row({"BLOCK_CHANNELS": 8}),),
    "resize_kernel": (
        Row({"BLOCK_PIXELS": 128, "BLOCK_CHANNELS": 16}, max_width=16),
        Row({"BLOCK_PIXELS": 64, "BLOCK_CHANNELS": 64}),
    ),
    "resize_backward_kernel": (
        Row({"BLOCK_PIXELS": 64, "BLOCK_CHANNELS": 16}, max_width=16),
        Row({"BLOCK_PIXELS": 32, "BLOCK_CHANNELS": 64}),
    ),
    "hidden_kernel": (
        Row({"BLOCK_PIXELS": 128}, max_itemsize=FLOAT, max_width=32),
        Row({"BLOCK_PIXELS": 32}, max_width=128),
        Row({"BLOCK_PIXELS": 16}, 8),
    ),
    "offsets_kernel": (
        Row({"BLOCK_PIXELS": 128}, num_stages=3, max_itemsize=HALF, max_width=64),
        Row({"BLOCK_PIXELS": 128}, 8, num_stages=2, max_itemsize=FLOAT, max_width=32),
        Row({"BLOCK_PIXELS": 16}),
    ),
    "tanh_backward_kernel": (Row({"BLOCK_PIXELS": 64}),),
    "hidden_backward_kernel": (
        Row({"BLOCK_PIXELS": 64}, num_stages=3, max_itemsize=HALF, max_width=16),
        Row({"BLOCK_PIXELS": 32}, num_stages=3, max_itemsize=FLOAT, max_width=32),
        Row({"BLOCK_PIXELS": 16}),
    ),
    "conv_weight_backward_kernel": (
        Row({"BLOCK_PIXELS": 32, "BLOCK_COLUMNS": 128}, num_stages=3, max_itemsize=HALF),
        Row({"BLOCK_PIXELS": 16, "BLOCK_COLUMNS": 128}, max_itemsize=FLOAT),
        Row({"BLOCK_PIXELS": 16, "BLOCK_COLUMNS": 32}),
    ),
    "query_backward_kernel": (
        Row({"BLOCK_PIXELS": 64}, max_itemsize=FLOAT, max_width=32),
        Row({"BLOCK_PIXELS": 16}),
    ),
    "sum_parts_kernel": (Row({"BLOCK_PARTS": 16, "BLOCK": 64}),),
    "reassemble_kernel": (Row({"BLOCK_PIXELS": 128, "BLOCK_CHANNELS": 32}),),
    "similarity_kernel": (
        Row({"BLOCK_PIXELS": 64, "BLOCK_CHANNELS": 32}, max_width=32),
        Row({"BLOCK_PIXELS": 64, "BLOCK_CHANNELS": 64}),
    ),
    "spread_kernel": (Row({"BLOCK_PIXELS": 128, "BLOCK_CHANNELS": 32}),),
}
"""By the kernel's name; of its rows the first that is meant for a call is taken."""
