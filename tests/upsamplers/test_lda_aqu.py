import math
import subprocess
import sys

import numpy as np
import oracle
import pytest
import torch
from gradients import gradcheck
from lda_aqu import LDAAQU
from lda_aqu.errors import InputError
from ops.tensors import relative_error
from randomized import randomized
from torch.nn import functional as F

PUBLISHED_NAMES = {
    "in_channels": "in_channels",
    "scale_factor": "scale_factor",
    "reduction_factor": "reduction",
    "nh": "num_heads",
    "k_u": "kernel_size",
    "k_e": "offset_kernel_size",
    "n_groups": "num_groups",
    "range_factor": "offset_range",
    "rpb": "position_bias",
}


@pytest.mark.parametrize(
    "name", ["default_c64", "lite_c64_r16", "heads2_groups4_k5", "no_rpb_scale4"]
)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_matches_the_published_implementation(golden, name, dtype, tolerance):
    reference = golden(name)
    module = LDAAQU(**{PUBLISHED_NAMES[k]: v for k, v in reference["config"].items()}).to(dtype)
    module.load_state_dict(reference["state_dict"])
    x = reference["x"].detach().to(dtype).requires_grad_()
    y = module(x)
    y.backward(reference["grad_y"].to(dtype))
    assert relative_error(y, reference["y"]) < tolerance
    assert relative_error(x.grad, reference["grad_x"]) < tolerance
    gradients = {key: parameter.grad for key, parameter in module.named_parameters()}
    assert gradients.keys() == reference["param_grads"].keys()
    for key, expected in reference["param_grads"].items():
        assert relative_error(gradients[key], expected) < tolerance, key


SWEEP = [
    (8, (5, 3), (10, 6), {}),
    (8, (4, 7), (4, 7), {}),
    (16, (3, 5), (9, 15), {"num_heads": 2, "num_groups": 4}),
    (8, (6, 5), (7, 13), {"kernel_size": 1}),
    (8, (5, 6), (3, 4), {"kernel_size": 5, "offset_kernel_size": 1}),
    (12, (1, 4), (2, 8), {"reduction": 2, "num_groups": 3, "num_heads": 3}),
    (8, (1, 1), (2, 2), {}),
    (8, (1, 1), (1, 1), {"position_bias": False}),
    (8, (7, 2), (1, 9), {"num_groups": 1, "offset_kernel_size": 5}),
    (8, (3, 3), (11, 1), {"offset_range": 2.5}),
    (9, (3, 4), (6, 8), {"reduction": 3, "num_groups": 1, "num_heads": 3}),
]


@pytest.mark.parametrize("channels, input_size, output_size, options", SWEEP)
def test_matches_the_loops(channels, input_size, output_size, options):
    module = randomized("LDAAQU", channels, **options).double()
    x = torch.randn(2, channels, *input_size, dtype=torch.float64)
    expected = oracle.lda_aqu(
        x.numpy(force=True),
        {key: value.numpy(force=True) for key, value in module.state_dict().items()},
        output_size,
        options.get("num_heads", 1),
        options.get("num_groups", 2),
        options.get("offset_range", 11.0),
    )
    with torch.no_grad():
        output = module(x, output_size=output_size)
    torch.testing.assert_close(output, torch.as_tensor(expected), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", [{}, {"num_heads": 2, "position_bias": False}])
def test_gradients(options):
    module = randomized("LDAAQU", 16, **options).double()
    x = torch.randn(1, 16, 3, 4, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*module.named_parameters(), strict=True)

    def run(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert gradcheck(run, (x, *parameters))


def test_parameters_at_256_channels():
    assert sum(p.numel() for p in LDAAQU(256).parameters()) == 39_410


def test_initial_values():
    module = LDAAQU(64)
    assert module.conv_offset[3].weight.eq(0).all() and module.conv_offset[3].bias.eq(0).all()
    assert 0.01 < module.relative_position_bias_table.std() < 0.03
    bound = (6 / (64 + 16)) ** 0.5  # Xavier uniform
    assert 0.9 * bound < module.proj_q.weight.abs().max() <= bound
    # Without offsets the window is regular, and a constant map stays what it is inside.
    y = module(torch.full((1, 64, 6, 6), 3.0))
    torch.testing.assert_close(y[:, :, 2:-2, 2:-2], torch.full((1, 64, 8, 8), 3.0))


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 1.5, 0.5])
def test_scale_factor(scale):
    y = LDAAQU(8, scale_factor=scale)(torch.randn(1, 8, 4, 6))
    assert y.shape == (1, 8, int(4 * scale), int(6 * scale))


@pytest.mark.parametrize("size", [(7, 13), (1, 1), (4, 6)])
def test_output_size(size):
    assert LDAAQU(8)(torch.randn(2, 8, 4, 6), output_size=size).shape == (2, 8, *size)


def test_empty_batch():
    x = torch.randn(0, 8, 4, 6, requires_grad=True)
    y = LDAAQU(8)(x)
    assert y.shape == (0, 8, 8, 12)
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_memory_formats_agree():
    module = randomized("LDAAQU", 16)
    x = torch.randn(2, 16, 5, 7)
    expected = module(x)
    for other in (
        x.to(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([x, x], 3)[..., :7],
    ):
        torch.testing.assert_close(module(other), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    module = randomized("LDAAQU", 16, offset_range=2.0)
    x = torch.randn(1, 16, 6, 5)
    expected = module(x)
    x = x.to(dtype).requires_grad_()
    y = module.to(dtype)(x)
    y.float().sum().backward()
    assert y.dtype == dtype and x.grad.dtype == dtype
    assert all(p.grad.isfinite().all() for p in module.parameters())
    assert (y.float() - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_compiles_with_inductor_once_for_all_sizes(inductor):
    module = randomized("LDAAQU", 16)

    def run(function, x: torch.Tensor) -> list[torch.Tensor]:
        x = x.clone().requires_grad_()
        y = function(x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]

    def check(*size: int) -> None:
        x = torch.randn(2, 16, *size)
        torch.testing.assert_close(run(compiled, x), run(module, x), rtol=1e-4, atol=1e-3)

    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    check(5, 7)
    with torch.compiler.set_stance("fail_on_recompile"):
        check(9, 4)


def test_autocast(device):
    module = randomized("LDAAQU", 16, offset_range=2.0)
    x = torch.randn(1, 16, 6, 5)
    expected = module(x)
    with torch.autocast(device.type, torch.bfloat16):
        y = module(x)
    y.sum().backward()
    assert y.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())
    assert 0 < (y - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_autocast_of_a_half_precision_map_computes_in_float32(device):
    """The attention itself must not fall to the precision that autocast asks of its parts."""
    module = randomized("LDAAQU", 16, offset_range=0.0)
    x = torch.randn(1, 16, 6, 5).bfloat16()
    with torch.autocast(device.type, torch.bfloat16):
        assert module(x).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "options, message",
    [
        ({"in_channels": 30}, r"in_channels \(30\) is not a multiple of reduction \(4\)"),
        ({"in_channels": 0}, "in_channels must be positive, got 0"),
        ({"in_channels": 16.0}, "in_channels must be an integer, got 16.0"),
        ({"in_channels": 20}, r"20 / 4 \(5\) is not a multiple of num_groups \(2\)"),
        ({"in_channels": 16, "num_heads": 3}, r"\(4\) is not a multiple of num_heads \(3\)"),
        ({"in_channels": 16, "kernel_size": 2}, "kernel_size must be odd and positive, got 2"),
        ({"in_channels": 16, "offset_kernel_size": 4}, "offset_kernel_size must be odd"),
        ({"in_channels": 16, "offset_range": -1.0}, "offset_range must be finite"),
        ({"in_channels": 16, "reduction": 0}, r"reduction \(0\)"),
        ({"in_channels": 16, "scale_factor": 0}, "scale_factor must be positive, got 0"),
        ({"in_channels": 16, "scale_factor": float("nan")}, "scale_factor must be positive"),
    ],
)
def test_values_that_do_not_fit_raise(options, message):
    with pytest.raises(InputError, match=message):
        LDAAQU(**options)


@pytest.mark.parametrize(
    "shape, size, message",
    [
        ((1, 4, 5, 5), None, "built for"),
        ((8, 5, 5), None, "built for"),
        ((1, 8, 5, 5), (0, 3), "positive"),
        ((1, 8, 5, 5), 20, "two integers: got 20"),
        ((1, 8, 5, 5), (5,), "two integers"),
        ((1, 8, 5, 5), (5.0, 6.0), "two integers"),
        ((1, 8, 5, 5), torch.zeros(1, 8, 10, 10), "LDAAQU takes no guide"),
    ],
)
def test_calls_that_do_not_fit_raise(shape, size, message):
    with pytest.raises(InputError, match=message):
        LDAAQU(8)(torch.zeros(shape), output_size=size)


@pytest.mark.cpu
def test_import_needs_torch_alone():
    """In a process in which nothing else that the project depends on can be imported."""
    script = """
import sys
for name in ("detectron2", "fvcore", "iopath", "yacs", "cv2", "PIL", "matplotlib", "torchvision"):
    sys.modules[name] = None
import lda_aqu, torch
y = lda_aqu.build_upsampler("LDAAQU", 16, reduction=2)(torch.zeros(1, 16, 3, 3))
assert y.shape == (1, 16, 6, 6)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_offsets_learn_to_reach_beyond_the_window():
    """Learns a shift by three pixels; a window of 3 x 3 without offsets sees one."""
    torch.manual_seed(0)
    module = LDAAQU(8, scale_factor=1, reduction=1)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(50):
        x = F.interpolate(torch.randn(2, 8, 5, 5), size=(16, 16), mode="bicubic")
        target = torch.roll(x, 3, dims=3)
        loss = (module(x) - target)[..., 5:-5].pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.15 * (x - target)[..., 5:-5].pow(2).mean()


@pytest.mark.parametrize(
    "options, output_size",
    [({}, None), ({"num_heads": 2, "num_groups": 1}, (7, 5)), ({"kernel_size": 1}, (1, 9))],
)
def test_sampling_says_what_the_module_reads(options, output_size):
    module = randomized("LDAAQU", 16, **options).double()
    x = torch.randn(2, 16, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        y = module(x, output_size)
        offsets, positions, weights = module.sampling(x, output_size)
    groups, points = offsets.shape[1:3]
    heads, p = weights.shape[1], math.isqrt(points) // 2
    expected = torch.zeros_like(y)
    for n, i, j, k in np.ndindex(2, *y.shape[2:], points):
        regular = i + k // (2 * p + 1) - p, j + k % (2 * p + 1) - p
        read = []
        for group, values in enumerate(x[n].chunk(groups)):
            where = positions[n, group, k, :, i, j].tolist()
            for axis in (0, 1):
                moved = regular[axis] + offsets[n, group, k, axis, i, j].item()
                scale = oracle.scale(x.shape[2 + axis], y.shape[2 + axis])
                assert where[axis] == pytest.approx(moved * scale, abs=1e-9)
            read.append(torch.as_tensor(oracle.bilinear_at(values.numpy(force=True), *where)))
        weight = weights[n, :, k, i, j].repeat_interleave(16 // heads)
        expected[n, :, i, j] += weight * torch.cat(read)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)
