import numpy as np
import oracle
import pytest
import torch
from lda_aqu.ops import local_deformable_attention

OP = torch.ops.lda_aqu.local_deformable_attention.default


def sample_inputs(seed: int, dtype=torch.float64, requires_grad: bool = False) -> tuple:
    """Inputs of odd shapes drawn from a seed; offsets reach outside the map."""
    rng = np.random.default_rng(seed)
    heads, groups = (int(rng.choice([1, 2])) for _ in range(2))
    unit = heads * groups
    depth, channels = unit * int(rng.integers(1, 4)), unit * int(rng.integers(1, 4))
    points = int(rng.choice([1, 3, 5])) ** 2
    batch = int(rng.integers(1, 3))
    in_h, in_w, out_h, out_w = (int(n) for n in rng.integers(1, 8, 4))
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return tensor.requires_grad_(requires_grad)

    offsets = 3 * draw(batch, groups, points, 2, out_h, out_w).detach()
    return (
        draw(batch, depth, out_h, out_w),
        draw(batch, depth, in_h, in_w),
        draw(batch, channels, in_h, in_w),
        offsets.requires_grad_(requires_grad),
        draw(heads, points, depth // heads) if rng.random() < 0.7 else None,
        heads,
    )


def arrays(inputs: tuple) -> list:
    return [i.detach().double().numpy() if torch.is_tensor(i) else i for i in inputs]


@pytest.mark.parametrize("seed", range(40))
def test_matches_the_loops(seed):
    inputs = sample_inputs(seed)
    expected = torch.from_numpy(oracle.attention(*arrays(inputs)))
    torch.testing.assert_close(
        local_deformable_attention(*inputs), expected, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("seed", range(12))
def test_gradients(seed):
    """Along random directions; the whole Jacobian of the module is in its own test."""
    inputs = sample_inputs(seed, requires_grad=True)
    assert torch.autograd.gradcheck(local_deformable_attention, inputs, fast_mode=True)


@pytest.mark.parametrize("seed", range(4))
def test_opcheck(seed):
    inputs = sample_inputs(seed, torch.float32, requires_grad=True)
    torch.library.opcheck(OP, inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    inputs = sample_inputs(3, dtype)
    expected = torch.from_numpy(oracle.attention(*arrays(inputs)))
    output = local_deformable_attention(*inputs)
    assert output.dtype == dtype
    # No more than the rounding of the output itself.
    torch.testing.assert_close(
        output.double(), expected, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps
    )


def test_positions_far_outside_read_zero():
    query, key, value, offsets, bias, heads = sample_inputs(1)
    output = local_deformable_attention(query, key, value, offsets + 1e6, bias, heads)
    assert output.eq(0).all()


def test_nan_in_one_pixel_stays_where_it_is_read():
    query, key, value = torch.randn(1, 2, 8, 8), torch.randn(1, 2, 8, 8), torch.randn(1, 2, 8, 8)
    value[0, 0, 0, 0] = torch.nan
    output = local_deformable_attention(query, key, value, torch.zeros(1, 1, 9, 2, 8, 8), None, 1)
    assert output[0, 0, 0, 0].isnan()
    assert output[0, 0, 3:, 3:].isfinite().all() and output[0, 1].isfinite().all()


def test_compiles_in_one_graph():
    inputs = sample_inputs(5, torch.float32)
    compiled = torch.compile(local_deformable_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), local_deformable_attention(*inputs))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"key": torch.zeros(1, 3, 4, 4)}, "do not fit"),
        ({"offsets": torch.zeros(1, 1, 9, 2, 8, 7)}, "do not fit"),
        ({"offsets": torch.zeros(1, 1, 8, 2, 8, 8)}, "k² points"),
        ({"offsets": torch.zeros(1, 3, 9, 2, 8, 8)}, "multiples of heads and groups"),
        ({"num_heads": 0}, "multiples of heads and groups"),
        ({"position_bias": torch.zeros(1, 9, 3)}, "position_bias"),
        ({"query": torch.zeros(1, 2, 8, 8, dtype=torch.int64)}, "floating-point"),
    ],
)
def test_shapes_that_do_not_fit_raise(change, message):
    inputs = {
        "query": torch.zeros(1, 2, 8, 8),
        "key": torch.zeros(1, 2, 4, 4),
        "value": torch.zeros(1, 4, 4, 4),
        "offsets": torch.zeros(1, 1, 9, 2, 8, 8),
        "position_bias": None,
        "num_heads": 1,
    }
    with pytest.raises(RuntimeError, match=message):
        local_deformable_attention(**{**inputs, **change})
