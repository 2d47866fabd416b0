"""Upsamplers leave Python, by each of PyTorch's ways out, and are right at other sizes then."""

from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path

import pytest
import torch
from lda_aqu import UPSAMPLER_REGISTRY, build_upsampler
from lda_aqu.ops import standard, standard_operators
from lda_aqu.upsamplers import LDAAQU, upsample_to
from torch import Tensor, nn

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

Inputs = tuple[Tensor, Tensor]

# LDAAQUStar is LDAAQU of another reduction.
NAMES = sorted({*UPSAMPLER_REGISTRY} - {"LDAAQUStar"})
# Windows of fewer points make graphs of fewer operators, which are exported in less time: those of
# LDAAQU (its attention), CARAFE (its reassembly) and SAPAB (its similarity) stay windows.
FEWER_POINTS = {
    "A2U": {"kernel_size": 1},
    "CARAFE": {"kernel_size": 3},
    "DLU": {"kernel_size": 1},
    "FADE": {"kernel_size": 1},
    "FADELite": {"kernel_size": 1},
    "FreqFusion": {"low_pass_kernel_size": 1, "high_pass_kernel_size": 1},
    "GuidedLDAAQU": {"kernel_size": 1},
    "LAU": {"kernel_size": 1},
    "LDAAQU of one point": {"kernel_size": 1},
    "SAPAB": {"kernel_size": 3},
}
# The batch, and the sizes of the map and of the finer one that it is upsampled to: twice as large,
# or less by a pixel.
SIZES = [(2, 9, 13, 18, 26), (3, 6, 20, 11, 39), (3, 7, 8, 14, 15)]
AXES = {0: "batch", 2: "height", 3: "width"}


class ToLateral(nn.Module):
    """Upsamples to the size of a finer map, as pyramids do."""

    def __init__(self, upsampler: nn.Module) -> None:
        super().__init__()
        self.upsampler = upsampler

    def forward(self, x: Tensor, lateral: Tensor) -> Tensor:
        # The lateral enters the graph, or exporters leave it away with its size.
        return upsample_to(self.upsampler, x, lateral) + lateral


@pytest.fixture(params=NAMES)
def model(request) -> nn.Module:
    torch.manual_seed(0)
    options = FEWER_POINTS.get(request.param, {})
    upsampler = build_upsampler(request.param.split()[0], 32, **options)
    if isinstance(upsampler, LDAAQU):
        nn.init.normal_(upsampler.conv_offset[3].weight, std=0.3)
    return ToLateral(upsampler).eval()


def inputs(batch: int, height: int, width: int, *finer: int) -> Inputs:
    return torch.randn(batch, 32, height, width), torch.randn(batch, 32, *finer)


def axes_of(model: ToLateral) -> dict[int, str]:
    if type(model.upsampler).__name__ == "A2U":  # whose images are groups of a convolution
        return {axis: name for axis, name in AXES.items() if name != "batch"}
    return AXES


def check(model: nn.Module, exported: Callable[..., Tensor]) -> None:
    for batch, *size in SIZES:
        given = inputs(batch if 0 in axes_of(model) else SIZES[0][0], *size)
        with torch.no_grad():
            actual, expected = exported(*given), model(*given)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-4)


def run_onnx(file: Path) -> Callable[..., Tensor]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options)
    names = [i.name for i in session.get_inputs()]

    def run(*given: Tensor) -> Tensor:
        arrays = [t.numpy() for t in given]
        return torch.from_numpy(session.run(None, dict(zip(names, arrays, strict=True)))[0])

    return run


def grid_sample_ranks(file: Path) -> set[int]:
    """How many dimensions the results of the graph's GridSample have."""
    exported = onnx.load(file)
    names = [n.output[0] for n in exported.graph.node if n.op_type == "GridSample"]
    exported.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(exported.SerializeToString())
    given = (t.numpy() for t in inputs(*SIZES[0]))
    feed = dict(zip((i.name for i in session.get_inputs()), given, strict=True))
    return {session.run([name], feed)[0].ndim for name in names}


def domains(file: Path) -> set[str]:
    return {node.domain for node in onnx.load(file).graph.node}


def test_onnx(model, tmp_path):
    file = tmp_path / "upsampler.onnx"
    torch.onnx.export(
        *(model, inputs(*SIZES[0]), file),
        dynamo=False,
        opset_version=17,
        input_names=["x", "lateral"],
        dynamic_axes={
            "x": axes_of(model),
            "lateral": axes_of(model) | {2: "finer_height", 3: "finer_width"},
        },
    )
    assert domains(file) <= {"", "ai.onnx"}
    assert grid_sample_ranks(file) <= {4}  # TensorRT reads none of five
    check(model, run_onnx(file))


@pytest.mark.parametrize(
    "model",
    [
        *("LDAAQU of one point", "DySample"),
        *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES if n != "DySample"),
    ],
    indirect=True,
)
def test_onnx_by_dynamo(model, tmp_path):
    file = tmp_path / "upsampler.onnx"
    dynamic = dict.fromkeys(axes_of(model), torch.export.Dim.DYNAMIC)
    torch.onnx.export(
        *(model, inputs(*SIZES[0]), file),
        dynamo=True,
        verbose=False,
        dynamic_shapes=(dynamic, dynamic),
    )
    assert domains(file) <= {"", "ai.onnx"}
    check(model, run_onnx(file))


def test_torchscript(model):
    traced = torch.jit.trace(model, inputs(*SIZES[0]))
    kinds = {node.kind().split("::")[0] for node in traced.inlined_graph.nodes()}
    assert kinds <= {"aten", "prim"}
    check(model, traced)


def test_torchscript_of_layers_that_are_called():
    upsampler = build_upsampler("LDAAQU", 32, kernel_size=1)
    for layer in (upsampler.layer_norm, upsampler.conv_offset[0]):
        layer.register_forward_hook(lambda *_: None)
    model = ToLateral(upsampler).eval()
    check(model, torch.jit.trace(model, inputs(*SIZES[0])))


def test_torch_export(model):
    dynamic = dict.fromkeys(AXES, torch.export.Dim.AUTO)
    program = torch.export.export(model, inputs(*SIZES[0]), dynamic_shapes=(dynamic, dynamic))
    check(model, program.module())


def test_torch_export_in_standard_operators(model):
    with standard_operators():
        program = torch.export.export(model, inputs(*SIZES[0]))
    calls = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert calls
    assert not [target for target in calls if target.startswith("lda_aqu")]
    given = inputs(*SIZES[0])
    with torch.no_grad():
        actual, expected = program.module()(*given), model(*given)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-4)


def test_standard_operators_until_the_last_who_asked_is_done():
    first, second = standard_operators(), standard_operators()
    with first:
        second.__enter__()
    assert standard.is_exporting()
    second.__exit__(None, None, None)
    assert not standard.is_exporting()


def test_no_context_variable_is_traced():
    """Dynamo of the oldest PyTorch that is supported, 2.6, cannot."""
    assert not any(isinstance(value, ContextVar) for value in vars(standard).values())


def test_whole_scale_upsamplers_go_on_interpolating():
    """Exported at a size that is not about twice the map's; torch.export refuses any other."""
    model = ToLateral(build_upsampler("PixelShuffle", 32)).eval()
    interpolated, another, cropped = (
        inputs(1, *size) for size in ((9, 13, 30, 30), (6, 20, 25, 31), (9, 13, 18, 26))
    )
    traced = torch.jit.trace(model, interpolated)
    dynamic = dict.fromkeys(AXES, torch.export.Dim.AUTO)
    program = torch.export.export(model, interpolated, dynamic_shapes=(dynamic, dynamic)).module()
    for exported in (traced, program):
        torch.testing.assert_close(exported(*another), model(*another))
    with pytest.raises(AssertionError, match="Guard failed"):
        program(*cropped)
