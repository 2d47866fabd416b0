"""Models leave Python: as ONNX and as TorchScript, both of standard operators alone."""

from collections.abc import Callable

import lda_aqu.modeling  # noqa: F401  (registers the builders)
import pytest
import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import build_model
from lda_aqu import UPSAMPLER_REGISTRY, build_upsampler
from lda_aqu.engine import load_config
from lda_aqu.upsamplers import LDAAQU, GuidedUpsampler
from paths import ROOT
from torch import Tensor, nn

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def with_offsets(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, LDAAQU):
            nn.init.normal_(module.conv_offset[3].weight, std=0.3)
    return model.eval()


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
    "SAPAB": {"kernel_size": 3},
}
SIZES = [(9, 13), (6, 20)]


@pytest.fixture(params=NAMES)
def upsampler(request) -> nn.Module:
    torch.manual_seed(0)
    options = FEWER_POINTS.get(request.param, {})
    return with_offsets(build_upsampler(request.param, 32, **options))


def inputs(upsampler: nn.Module, height: int, width: int) -> tuple[Tensor, ...]:
    guided = isinstance(upsampler, GuidedUpsampler)
    return (
        torch.randn(1, 32, height, width),
        *([torch.randn(1, 32, 2 * height, 2 * width)] * guided),
    )


def check(upsampler: nn.Module, exported: Callable[..., Tensor]) -> None:
    for size in SIZES:
        given = inputs(upsampler, *size)
        with torch.no_grad():
            actual, expected = exported(*given), upsampler(*given)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-4)


def test_onnx_of_any_size(upsampler, tmp_path):
    height, width = (torch.export.Dim(axis, min=2, max=512) for axis in "hw")
    given = inputs(upsampler, *SIZES[0])
    axes = [{2: height, 3: width}, {2: 2 * height, 3: 2 * width}][: len(given)]
    file = str(tmp_path / "upsampler.onnx")
    torch.onnx.export(
        upsampler, given, file, dynamo=True, verbose=False, dynamic_shapes=tuple(axes)
    )
    graph = onnx.load(file).graph
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options)
    names = [i.name for i in session.get_inputs()]

    def run(*given: Tensor) -> Tensor:
        arrays = [t.numpy() for t in given]
        return torch.from_numpy(session.run(None, dict(zip(names, arrays, strict=True)))[0])

    check(upsampler, run)


def test_torchscript_of_any_size(upsampler):
    traced = torch.jit.trace(upsampler, inputs(upsampler, *SIZES[0]))
    kinds = {node.kind().split("::")[0] for node in traced.inlined_graph.nodes()}
    assert kinds <= {"aten", "prim"}
    check(upsampler, traced)


def test_torchscript_of_a_detector_of_any_size(tmp_path):
    config = ROOT / "configs/Small/mask_rcnn_R_18_FPN_dsb2018_lda_aqu.yaml"
    torch.manual_seed(0)
    # Untrained, it finds as many objects as it may, which takes its time.
    few = ["MODEL.RPN.POST_NMS_TOPK_TEST", 20, "TEST.DETECTIONS_PER_IMAGE", 5]
    model = with_offsets(build_model(load_config(config, ["MODEL.DEVICE", "cpu", *few])))

    def detect(model: nn.Module, inputs: list) -> object:
        return model.inference(inputs, do_postprocess=False)[0]

    adapter = TracingAdapter(model, [{"image": 255 * torch.rand(3, 96, 128)}], detect)
    torch.jit.trace(adapter, adapter.flattened_inputs).save(tmp_path / "model.ts")
    traced = torch.jit.load(tmp_path / "model.ts")
    assert not [n for n in traced.inlined_graph.nodes() if n.kind().startswith("lda_aqu")]
    for size in ((96, 128), (160, 96)):
        image = 255 * torch.rand(3, *size)
        with torch.no_grad():
            pairs = zip(traced(image), adapter(image), strict=True)
            for actual, expected in pairs:
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
