"""The rows of :data:`.launch.TABLE` for the kernels of projection, offset network and reassembly.

Chosen by what the compiler makes of them for sm_90 at the shipped widths: none spills registers.
"""

from .launch import HALF, TABLE, Row

FLOAT = 4  # bytes of an element

TABLE |= {
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
