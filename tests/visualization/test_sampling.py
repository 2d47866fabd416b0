import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from lda_aqu.engine import load_config, load_model
from lda_aqu.errors import InputError
from lda_aqu.visualization import check_pixels, edge_pixels, record_upsamplers
from PIL import Image


@pytest.fixture
def load(tiny_config, tmp_path):
    """The model of ``tiny_config`` and options, with random weights, and its config."""

    def load(*options: str):
        cfg = load_config(str(tiny_config), list(options))
        torch.manual_seed(0)
        model = build_model(cfg)
        for name, parameter in model.named_parameters():
            if "conv_offset" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        DetectionCheckpointer(model, str(tmp_path)).save("weights")
        cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
        return load_model(cfg), cfg

    return load


@pytest.fixture
def image_file(tmp_path) -> str:
    pixels = np.random.default_rng(0).integers(0, 255, (128, 182, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return str(tmp_path / "image.png")


def test_what_every_upsampler_takes_chooses_and_gives_is_recorded(load, image_file):
    model, cfg = load("MODEL.ROI_MASK_HEAD.NAME", "UpsamplerMaskRCNNConvHead")
    recording = record_upsamplers(model, cfg, image_file)
    assert recording.image.shape == (128, 182, 3)
    # The image is taken at 64 x 91 and padded to 64 x 96.
    assert recording.extent == pytest.approx((128, 2 * 96))
    # Not that of the mask head.
    assert [run.name for run in recording.runs] == [f"backbone.fpn_upsample{n}" for n in (4, 3, 2)]
    for run, stride in zip(recording.runs, (16, 8, 4), strict=True):
        assert run.stride == stride
        assert run.after.shape == (16, 64 // stride, 96 // stride)
        module = model.get_submodule(run.name)
        with torch.no_grad():
            torch.testing.assert_close(module(run.before[None])[0], run.after)
            expected = module.sampling(run.before[None])
        assert run.sampling.offsets.abs().max() > 0.1
        for recorded, value in zip(run.sampling, expected, strict=True):
            torch.testing.assert_close(recorded, value)
        assert not module._forward_hooks
    assert not model.backbone._forward_pre_hooks


def test_upsamplers_without_points_are_recorded_too(load, image_file):
    recording = record_upsamplers(*load("MODEL.FPN.UPSAMPLER", "Bilinear"), image_file)
    assert len(recording.runs) == 3
    assert recording.sampled == []


def test_a_model_without_upsamplers_is_an_input_error(load, image_file):
    model = load("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone")
    with pytest.raises(InputError, match=r"BACKBONE\.NAME is 'build_resnet_fpn_backbone'"):
        record_upsamplers(*model, image_file)


def test_edge_pixels_are_on_edges_and_apart():
    image = np.full((80, 120, 3), 50, dtype=np.uint8)
    image[30:60, 20:90] = 200
    pixels = edge_pixels(image)
    assert len(pixels) == 3
    for index, (x, y) in enumerate(pixels):
        assert min(abs(x - 19.5), abs(x - 89.5), abs(y - 29.5), abs(y - 59.5)) < 2
        for other in pixels[:index]:
            assert np.hypot(x - other[0], y - other[1]) >= 16


def test_edge_pixels_are_on_edges_near_the_border():
    image = np.full((80, 120, 3), 50, dtype=np.uint8)
    for x, y in ((1, 1), (100, 1), (60, 64)):
        image[y : y + 6, x : x + 6] = 200
    pixels = np.array(edge_pixels(image))
    near = np.array([(4, 4), (103, 4), (63, 67)])
    assert (abs(pixels[:, None] - near).max(2).min(0) < 6).all()


def test_pixels_outside_the_image_are_named():
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    check_pixels([(0, 0), (59, 39)], "a.png", image)
    for x, y in ((60, 0), (0, 40), (-1, 0)):
        with pytest.raises(InputError, match=rf"pixel {x},{y} is outside a\.png, 60 x 40"):
            check_pixels([(1, 1), (x, y)], "a.png", image)
