"""Triton's kernels of projection, offset network and reassembly: compiled."""

import pytest
import torch

pytest.importorskip("triton")  # installed with PyTorch for GPUs alone

from compiled import at_shipped_widths, lanes_of_loads, needs_compiler, spilling
from lda_aqu.benchmark.kernel_compiler import GFX942, SM_80, compile_for
from lda_aqu.benchmark.kernel_launches import recording
from lda_aqu.ops.triton import offset_network, projection, reassembly

pytestmark = [
    pytest.mark.usefixtures("new_triton_cache"),
    pytest.mark.cpu,  # kernels that run on a GPU are tested with every other backend
]


def run_module(depth: int, dtype: torch.dtype, size: tuple[int, int] = (8, 8)) -> None:
    """Projections and offsets of LDA-AQU for 256 channels, to twice the size, and back."""
    exact = torch.promote_types(dtype, torch.float32)
    channels = depth // 2

    def parameter(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=exact)

    inputs = (
        torch.empty(2, 256, *size, dtype=dtype),
        *(parameter(256), parameter(256), parameter(2 * depth, 256, 1, 1)),
        *([depth, depth], dtype),
    )
    outputs = projection.project_normalized(*inputs)
    network = (
        *(parameter(channels, 1, 3, 3), parameter(channels), parameter(channels)),
        *(parameter(18, channels, 3, 3), parameter(18)),
        *(2, 11.0),
    )
    results = offset_network.predict_offsets(outputs[0], *network, [2 * side for side in size])
    offset_network.predict_offsets_backward(results, *results, *network, size)
    projection.project_normalized_backward(outputs, *inputs)


def run_reassembly(dtype: torch.dtype, size: tuple[int, int] = (8, 8)) -> None:
    """As CARAFE has it."""
    output_size = [2 * side for side in size]
    x, query = (torch.empty(2, 256, *s, dtype=dtype) for s in (size, output_size))
    weights = torch.empty(2, 1, 25, *output_size, dtype=dtype)
    reassembly.reassemble(x, weights)
    reassembly.similarity(x, query, 1, 25)
    reassembly.spread(weights, query, *size)


def run_all(depth: int, dtype: torch.dtype, size: tuple[int, int] = (8, 8)) -> None:
    run_module(depth, dtype, size)
    run_reassembly(dtype, size)


@needs_compiler
@at_shipped_widths
def test_spills_no_registers(depth, dtype):
    """On Hopper, at the widths that are shipped."""
    with recording() as record:
        run_all(depth, dtype)
    assert not spilling(record)


@needs_compiler
def test_compiles_reassembly_in_which_lanes_read_neighbouring_pixels():
    """Of contiguous maps."""
    with recording() as record:
        run_reassembly(torch.float32)
    for launched in record.launches:
        assert lanes_of_loads(launched) == {(1, 32)}, launched.kernel.__name__


@needs_compiler
@pytest.mark.parametrize(
    "target, binary, capability, depth, dtype",
    [
        (SM_80, "cubin", (8, 0), 16, torch.float64),
        (GFX942, "hsaco", (0, 0), 16, torch.float16),
    ],
    ids=["sm_80 float64", "gfx942 float16"],
)
def test_compiles(target, binary, capability, depth, dtype):
    with recording(capability) as record:
        run_all(depth, dtype)
    for launched in record.launches:
        assert compile_for(target, launched).asm[binary]


@needs_compiler
def test_compiles_nothing_anew_for_another_size():
    """What the compiler is told is the same; of numbers it is not told whether they are round."""
    with recording() as record:
        run_all(64, torch.float32)
    with recording() as other_record:
        run_all(64, torch.float32, size=(7, 1))
    for launched, other in zip(record.launches, other_record.launches, strict=True):
        for parameter in launched.kernel.params:
            value = launched.values[parameter.name]
            if parameter.is_constexpr:
                assert value == other.values[parameter.name], parameter.name
            elif isinstance(value, int):
                assert parameter.do_not_specialize, parameter.name
