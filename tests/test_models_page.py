"""What docs/models.md shows runs: its code, and of its models the sizes, a step and an export."""

import re

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from lda_aqu.upsamplers import LDAAQU, GuidedUpsampler, Upsampler
from paths import ROOT
from torch import Tensor, nn

PAGE = ROOT / "docs/models.md"
IMAGES = torch.rand(2, 3, 64, 64)
LOGITS = [(2, 4, 64, 64)]
PYRAMID = [(2, 256, size, size) for size in (16, 8, 4, 2, 1)]
SHAPES = {
    "yolo": [(2, 21, 16, 16), (2, 21, 8, 8), (2, 21, 4, 4)],
    "unet": LOGITS,
    "guided": LOGITS,
    "fpn": LOGITS,
    "decoder": [(2, 4, 32, 32)],
    "detector": PYRAMID,
    "of_timm": PYRAMID,
    "detectron": PYRAMID,
    "convnext": PYRAMID,
}
UPSAMPLERS = {"yolo": 2, "unet": 5, "guided": 5, "fpn": 4, "decoder": 1}  # and 3 in each pyramid


@pytest.fixture(scope="module")
def page() -> dict:
    """The names that the page's code defines, after it has run from top to bottom."""
    torch.manual_seed(0)
    names: dict = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def tensors(output: Tensor | list[Tensor] | dict[str, Tensor]) -> list[Tensor]:
    if isinstance(output, dict):
        return [*output.values()]
    return [output] if isinstance(output, Tensor) else [*output]


def loss(model: nn.Module, name: str) -> Tensor:
    boxes, labels = torch.tensor([[8.0, 8, 40, 50]]), torch.tensor([1])
    if name in ("detectron", "convnext"):
        instances = Instances((64, 64), gt_boxes=Boxes(boxes), gt_classes=labels)
        images = [{"image": 255 * image, "instances": instances} for image in IMAGES]
        with EventStorage():
            return sum(model(images).values())
    if SHAPES[name] is PYRAMID:
        return sum(model([*IMAGES], [{"boxes": boxes, "labels": labels}] * 2).values())
    return sum(y.square().mean() for y in tensors(model(IMAGES)))


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_and_a_training_step_that_reaches_every_upsampler(page, name):
    model = page[name].train()
    maps = model.backbone if SHAPES[name] is PYRAMID else model
    with torch.no_grad():
        assert [y.shape for y in tensors(maps(IMAGES))] == SHAPES[name]
    upsamplers = [module for module in model.modules() if isinstance(module, Upsampler)]
    assert len(upsamplers) == UPSAMPLERS.get(name, 3)
    assert any(isinstance(m, GuidedUpsampler) for m in upsamplers) == (name == "guided")
    optimizer = torch.optim.SGD(model.parameters(), 0.001)
    loss(model, name).backward()
    for upsampler in upsamplers:
        gradients = [p.grad for p in upsampler.parameters()]
        assert all(g.isfinite().all() for g in gradients) and any(g.any() for g in gradients)
    optimizer.step()
    assert loss(model, name).isfinite()


@pytest.mark.parametrize("name", ["unet", "guided", "fpn"])
def test_offsets_stay_on_small_maps(page, name):
    """The first step of a decoder is from 8 x 8 for images of 256 x 256."""
    first = next(m for m in page[name].decoder.modules() if isinstance(m, Upsampler))
    assert not isinstance(first, LDAAQU) or 2 * first.conv_offset.offset_range < 16


def test_what_takes_upsamplers_as_leaves(page):
    with torch.no_grad():
        assert page["extractor"](IMAGES)["up3"].shape == (2, 64, 16, 16)


@pytest.mark.parametrize("name", ["yolo", "guided", pytest.param("fpn", marks=pytest.mark.slow)])
def test_torch_export_with_dynamic_sizes(page, name):
    model = page[name].eval()
    height, width = (torch.export.Dim(axis, min=2, max=16) for axis in "hw")
    axes = {2: 32 * height, 3: 32 * width}
    exported = torch.export.export(model, (IMAGES,), dynamic_shapes=(axes,)).module()
    other = torch.rand(2, 3, 96, 128)
    with torch.no_grad():
        for actual, expected in zip(tensors(exported(other)), tensors(model(other)), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


class Traceable(nn.Module):
    """A detector that is called with one image and returns tensors."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.detector([image])[0].values())


def test_torchscript_of_a_torchvision_detector_with_any_size(page):
    model = Traceable(page["detector"]).eval()
    model.detector.roi_heads.score_thresh = 0.0
    model.detector.roi_heads.detections_per_img = 5
    other = torch.rand(3, 80, 64)
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.rand(3, 64, 80), check_trace=False)
        for actual, expected in zip(traced(other), model(other), strict=True):
            assert len(actual) == 5
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
