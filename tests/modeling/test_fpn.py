import pickle
import re

import lda_aqu.modeling  # noqa: F401  (registers the builders)
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone, build_model
from lda_aqu import LDAAQU, add_lda_aqu_config
from lda_aqu.conversion import convert_weights
from lda_aqu.engine import Checkpointer
from lda_aqu.errors import InputError
from lda_aqu.modeling import UpsamplerFPN
from lda_aqu.upsamplers import GuidedUpsampler
from recorder import Recorder
from torch import nn

RCNN = "build_resnet{}_fpn_backbone"
RETINANET = "build_retinanet_resnet{}_fpn_backbone"


def config(builder: str, *opts: object):
    cfg = get_cfg()
    add_lda_aqu_config(cfg)
    levels = (
        ["res2", "res3", "res4", "res5"]
        if builder.startswith("build_resnet")
        else ["res3", "res4", "res5"]
    )
    cfg.merge_from_list(["MODEL.DEVICE", str(torch.get_default_device())])
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", builder, "MODEL.BACKBONE.FREEZE_AT", 0])
    cfg.merge_from_list(["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64])
    cfg.merge_from_list(["MODEL.RESNETS.OUT_FEATURES", levels, "MODEL.FPN.IN_FEATURES", levels])
    cfg.merge_from_list(["MODEL.FPN.OUT_CHANNELS", 16, *opts])
    return cfg


def build(builder: str, *opts: object, seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return build_backbone(config(builder, *opts))


@pytest.mark.parametrize(
    "builder, fuse_type, norm",
    [
        (RCNN, "sum", ""),
        (RCNN, "avg", "GN"),
        (RCNN, "sum", "BN"),
        (RETINANET, "avg", ""),
        (RETINANET, "sum", "GN"),
        (RETINANET, "avg", "BN"),
    ],
)
def test_nearest_is_detectron2s_fpn_bit_for_bit(builder, fuse_type, norm):
    opts = ["MODEL.FPN.FUSE_TYPE", fuse_type, "MODEL.FPN.NORM", norm, "MODEL.FPN.OUT_CHANNELS", 32]
    theirs = build(builder.format(""), *opts)
    ours = build(builder.format("_lda_aqu"), *opts, "MODEL.FPN.UPSAMPLER", "Nearest")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(
        torch.equal(a, b)
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    )
    assert ours.output_shape() == theirs.output_shape()
    assert ours.size_divisibility == theirs.size_divisibility
    x = torch.randn(2, 3, 64, 96)
    expected, actual = theirs(x), ours(x)
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "builder, topology, fuse_type, norm",
    [
        (RCNN, "detectron2", "sum", ""),
        (RCNN, "published", "avg", "GN"),
        (RCNN, "published", "sum", "GN"),
        (RETINANET, "detectron2", "avg", "GN"),
        (RETINANET, "published", "sum", ""),
        (RETINANET, "detectron2", "avg", ""),
    ],
)
def test_lda_aqu_fpn(builder, topology, fuse_type, norm):
    opts = ["MODEL.FPN.FUSE_TYPE", fuse_type, "MODEL.FPN.NORM", norm, "MODEL.FPN.OUT_CHANNELS", 32]
    fpn = build(builder.format("_lda_aqu"), *opts, "MODEL.FPN.TOPOLOGY", topology)
    upsamplers = {name for name, m in fpn.named_modules() if isinstance(m, LDAAQU)}
    finest = 2 if builder == RCNN else 3
    coarsest = {"detectron2": 5, "published": 6 if builder == RCNN else 7}[topology]
    assert upsamplers == {f"fpn_upsample{n}" for n in range(finest, coarsest)}
    assert fpn.size_divisibility == 2**coarsest

    x = torch.randn(1, 3, 128, 256)
    outputs = fpn(x)
    for name, shape in fpn.output_shape().items():
        assert outputs[name].shape == (1, 32, 128 // shape.stride, 256 // shape.stride), name
    sum(output.pow(2).sum() for output in outputs.values()).backward()
    missing = [name for name, p in fpn.named_parameters() if p.grad is None]
    assert not missing


def test_fuse_type_avg_halves_at_each_step():
    fpns = {
        kind: build(RCNN.format("_lda_aqu"), "MODEL.FPN.FUSE_TYPE", kind) for kind in ("sum", "avg")
    }
    x = torch.randn(1, 3, 64, 64)
    total, mean = (fpns[kind](x) for kind in ("sum", "avg"))
    torch.testing.assert_close(total["p5"], mean["p5"])
    assert not torch.allclose(total["p4"], mean["p4"])


class Given(Backbone):
    """A bottom-up network that returns the maps it is given."""

    def __init__(self, maps: list[torch.Tensor]) -> None:
        super().__init__()
        self.maps = {f"res{i + 2}": m for i, m in enumerate(maps)}
        self._out_features = list(self.maps)

    def forward(self, x):
        return self.maps

    def output_shape(self):
        return {
            name: ShapeSpec(channels=m.shape[1], stride=2**i)
            for i, (name, m) in enumerate(self.maps.items(), 2)
        }


def test_compiles_with_inductor(inductor):
    maps = [torch.randn(2, 8, *size) for size in ((9, 13), (5, 7))]
    fpn = UpsamplerFPN(Given(maps), ["res2", "res3"], 16, lambda: LDAAQU(16))
    nn.init.normal_(fpn.fpn_upsample2.conv_offset[3].weight, std=0.1)
    with torch.no_grad():
        actual, expected = torch.compile(fpn, fullgraph=True)(None), fpn(None)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_published_topology_matches_the_published_implementation(golden):
    reference = golden("fpn_topdown_p6")
    options = reference["config"]["upsample"]
    fpn = UpsamplerFPN(
        Given(reference["inputs"]),
        ["res2", "res3", "res4", "res5"],
        reference["config"]["out_channels"],
        lambda: LDAAQU(
            reference["config"]["out_channels"],
            reduction=options["reduction_factor"],
            num_groups=options["n_groups"],
            kernel_size=options["k_u"],
            offset_kernel_size=options["k_e"],
            offset_range=options["range_factor"],
        ),
        extra_levels=1,
    ).double()
    converted, _ = convert_weights(
        {f"neck.{name}": value for name, value in reference["state_dict"].items()},
        {f"backbone.{name}": value.shape for name, value in fpn.state_dict().items()},
    )
    fpn.load_state_dict({name.removeprefix("backbone."): v for name, v in converted.items()})
    with torch.no_grad():
        outputs = list(fpn(None).values())
    assert len(outputs) == len(reference["outputs"])
    for output, expected in zip(outputs, reference["outputs"], strict=True):
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("topology", ["detectron2", "published"])
def test_odd_sizes_are_cropped(topology):
    fpn = build(RCNN.format("_lda_aqu"), "MODEL.FPN.TOPOLOGY", topology)
    outputs = fpn(torch.randn(1, 3, 70, 90))
    assert outputs["p2"].shape[2:] == (18, 23) and outputs["p5"].shape[2:] == (3, 3)


@pytest.mark.parametrize("extra_levels", [0, 1])
def test_the_guide_is_the_lateral_map(extra_levels):
    maps = [torch.randn(1, 4, *size) for size in ((35, 45), (18, 23), (9, 12), (5, 6))]
    levels = ["res2", "res3", "res4", "res5"]
    fpn = UpsamplerFPN(Given(maps), levels, 4, lambda: Recorder(4), extra_levels=extra_levels)
    outputs = fpn(None)
    assert [outputs[f"p{n}"].shape[2:] for n in range(2, 6)] == [m.shape[2:] for m in maps]
    upsamplers = [m for m in fpn.modules() if isinstance(m, Recorder)]
    assert len(upsamplers) == 3 + extra_levels
    for upsampler, level, bottom_up in zip(upsamplers, range(2, 6), maps, strict=False):
        lateral = getattr(fpn, f"fpn_lateral{level}")(bottom_up)
        assert torch.equal(upsampler.guide, lateral), level


@pytest.mark.parametrize("builder", [RCNN, RETINANET])
@pytest.mark.parametrize("topology", ["detectron2", "published"])
def test_a_guided_upsampler_by_name(builder, topology):
    opts = ["MODEL.FPN.UPSAMPLER", "FADE", "MODEL.FADE.GATING", False]
    fpn = build(builder.format("_lda_aqu"), *opts, "MODEL.FPN.TOPOLOGY", topology)
    upsamplers = [m for m in fpn.modules() if isinstance(m, GuidedUpsampler)]
    assert upsamplers and all(u.gate is None for u in upsamplers)
    assert fpn(torch.randn(1, 3, 70, 90))["p3"].shape[2:] == (9, 12)


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_model_zoo_checkpoint_loads(tmp_path, caplog, suffix):
    """Detectron2's own model saved in its zoo's format: the upsamplers alone are missing."""
    opts = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.RPN.IN_FEATURES", ["p2", "p3"]]
    opts += ["MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["p2"]]
    opts += ["MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1]
    opts += ["MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64]]]
    theirs = build_model(config(RCNN.format(""), *opts))
    state = theirs.state_dict()
    path = tmp_path / f"zoo.{suffix}"
    if suffix == "pkl":
        content = {"model": {k: v.numpy(force=True) for k, v in state.items()}, "__author__": "zoo"}
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save({"model": state}, path)

    ours = build_model(config(RCNN.format("_lda_aqu"), *opts))
    with caplog.at_level("INFO"):
        Checkpointer(ours, complete=True).load(str(path))
    for key, value in state.items():
        assert torch.equal(ours.state_dict()[key], value), key
    missing = set(ours.state_dict()) - set(state)
    assert missing and all(key.startswith("backbone.fpn_upsample") for key in missing)
    total = len(dict(ours.named_parameters()))
    (line,) = [message for message in caplog.messages if "upsamplers" in message]
    assert line == (
        f"{total - len(missing)} of {total} parameters are loaded from {str(path)!r}; the "
        f"{len(missing)} of the upsamplers backbone.fpn_upsample2, backbone.fpn_upsample3, "
        "backbone.fpn_upsample4 are not, and keep their initial values"
    )
    assert "not found in the checkpoint" not in caplog.text


def caffe2_name(key: str) -> str:
    """What the zoo's ImageNet files call a parameter of a ResNet of Detectron2."""
    for pattern, replacement in (
        (r"^stem\.conv1\.norm", "res_conv1_bn"),
        (r"^stem\.", ""),
        (r"(res\d)\.(\d)\.shortcut", r"\1_\2_branch1"),
        (r"(res\d)\.(\d)\.conv(\d)", lambda m: f"{m[1]}_{m[2]}_branch2{' abc'[int(m[3])]}"),
        (r"\.norm", "_bn"),
        (r"_bn\.weight", "_bn_s"),
        (r"\.weight", "_w"),
        (r"\.bias", "_b"),
    ):
        key = re.sub(pattern, replacement, key)
    return key


def test_imagenet_weights_of_the_model_zoo_load(tmp_path):
    """They are named as in Caffe2: a scale and a shift for each normalisation, no statistics."""
    opts = ["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8]
    opts += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 16]
    source, target = (build(RCNN.format("_lda_aqu"), *opts, seed=seed) for seed in (0, 1))
    wanted = {}
    for key, value in source.bottom_up.state_dict().items():
        if "running" not in key:
            wanted[key] = torch.randn_like(value)
    content = {caffe2_name(key): value.numpy(force=True) for key, value in wanted.items()}
    assert {"conv1_w", "res_conv1_bn_s", "res2_0_branch1_w", "res5_2_branch2c_bn_b"} < set(content)
    content |= {
        "conv1_w_momentum": content["conv1_w"],
        "pred_w": torch.zeros(2, 3).numpy(force=True),
    }
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content, protocol=2))
    Checkpointer(torch.nn.ModuleDict({"backbone": target})).load(str(tmp_path / "R-50.pkl"))
    loaded = target.bottom_up.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in wanted.items())


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.FPN.UPSAMPLER", "Carafe"], "MODEL.FPN.UPSAMPLER 'Carafe'.*known: .*Bilinear"),
        (["MODEL.FPN.TOPOLOGY", "p6"], "TOPOLOGY 'p6': allowed are detectron2, published"),
        (["MODEL.FPN.OUT_CHANNELS", 30], r"MODEL.FPN.OUT_CHANNELS 30.*reduction \(4\)"),
        (["MODEL.LDA_AQU.KERNEL_SIZE", 2], r"MODEL.LDA_AQU.\*.*kernel_size must be odd"),
        (["MODEL.FPN.FUSE_TYPE", "max"], "MODEL.FPN.FUSE_TYPE 'max': allowed are sum, avg"),
    ],
)
def test_bad_values_name_the_key(opts, message):
    with pytest.raises(InputError, match=message):
        build(RCNN.format("_lda_aqu"), *opts)


def test_every_option_reaches_the_upsampler():
    opts = {"REDUCTION": 2, "NUM_HEADS": 2, "NUM_GROUPS": 4, "KERNEL_SIZE": 5}
    opts |= {"OFFSET_KERNEL_SIZE": 1, "OFFSET_RANGE": 3.0, "POSITION_BIAS": False}
    flat = [part for key, value in opts.items() for part in (f"MODEL.LDA_AQU.{key}", value)]
    upsampler = build(RCNN.format("_lda_aqu"), *flat).fpn_upsample2
    assert upsampler.proj_q.out_channels == 8 and upsampler.num_heads == 2
    assert upsampler.num_points == 25
    assert upsampler.conv_offset[3].kernel_size == (1, 1)
    assert upsampler.conv_offset.num_groups == 4 and upsampler.conv_offset.offset_range == 3.0
    assert upsampler.relative_position_bias_table is None
