"""Models leave Python: as ONNX and as TorchScript, both of standard operators alone."""

import lda_aqu.modeling  # noqa: F401  (registers the builders)
import pytest
import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import build_model
from lda_aqu import build_upsampler
from lda_aqu.engine import load_config
from lda_aqu.upsamplers import LDAAQU, GuidedUpsampler
from paths import ROOT
from torch import nn

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def with_offsets(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, LDAAQU):
            nn.init.normal_(module.conv_offset[3].weight, std=0.3)
    return model.eval()


@pytest.mark.parametrize(
    "name, operator",
    [
        ("LDAAQU", "GridSample"),
        ("LAU", "GridSample"),
        ("GuidedLDAAQU", "GridSample"),
        ("Bicubic", "Resize"),
        ("Deconv", "ConvTranspose"),
        ("PixelShuffle", "Conv"),
        ("CARAFE", "Softmax"),
        ("DySample", "GridSample"),
        ("SAPAB", "Softmax"),
        ("IndexNet", "Sigmoid"),
    ],
)
def test_onnx_of_any_size(name, operator, tmp_path):
    torch.manual_seed(0)
    module = with_offsets(build_upsampler(name, 32))
    guided = isinstance(module, GuidedUpsampler)
    height, width = (torch.export.Dim(axis, min=2, max=512) for axis in "hw")
    axes = [{2: height, 3: width}, {2: 2 * height, 3: 2 * width}]

    def inputs(h: int, w: int) -> tuple[torch.Tensor, ...]:
        return (torch.randn(1, 32, h, w), torch.randn(1, 32, 2 * h, 2 * w))[: 1 + guided]

    file = str(tmp_path / "upsampler.onnx")
    torch.onnx.export(
        module,
        inputs(9, 13),
        file,
        dynamo=True,
        verbose=False,
        dynamic_shapes=tuple(axes[: 1 + guided]),
    )
    graph = onnx.load(file).graph
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    assert operator in {node.op_type for node in graph.node}
    session = onnxruntime.InferenceSession(file)
    for size in ((9, 13), (6, 20)):
        given = inputs(*size)
        names = [i.name for i in session.get_inputs()]
        (output,) = session.run(None, dict(zip(names, [t.numpy() for t in given], strict=True)))
        with torch.no_grad():
            expected = module(*given)
        torch.testing.assert_close(torch.from_numpy(output), expected, rtol=1e-4, atol=2e-4)


def test_torchscript_of_a_detector_of_any_size(tmp_path):
    config = ROOT / "configs/Small/mask_rcnn_R_18_FPN_dsb2018_lda_aqu.yaml"
    torch.manual_seed(0)
    model = with_offsets(build_model(load_config(config, ["MODEL.DEVICE", "cpu"])))

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
