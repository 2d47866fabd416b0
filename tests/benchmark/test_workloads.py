from dataclasses import replace

import pytest
import torch
from lda_aqu import LDAAQU
from lda_aqu.benchmark.implementations import (
    PUBLISHED,
    backend_reasons,
    parse_implementation,
    select_implementations,
)
from lda_aqu.benchmark.model_workload import PARTS, ModelWorkload, compared_models
from lda_aqu.benchmark.module_workload import ModuleWorkload
from lda_aqu.benchmark.settings import Setting, Step, fpn_steps, parse_size, square_steps
from lda_aqu.errors import InputError
from lda_aqu.ops import BACKENDS
from lda_aqu.upsamplers import UPSAMPLER_REGISTRY

STEP = Step("", 32, (4, 6), (8, 12))


def test_steps_of_an_image_that_is_padded():
    steps = fpn_steps((800, 1333))
    assert [(s.name, s.input_size, s.output_size) for s in steps] == [
        ("P5->P4", (25, 42), (50, 84)),
        ("P4->P3", (50, 84), (100, 168)),
        ("P3->P2", (100, 168), (200, 336)),
    ]
    assert {s.channels for s in steps} == {256}


def test_sweeps_are_of_all_channels_and_sides():
    assert [s.name for s in square_steps([8, 16], [4])] == ["8x4x4", "16x4x4"]
    assert square_steps([8], []) == []


@pytest.mark.parametrize("text", ["", "800", "0x5", "8x-1", "axb", "1x2x3", "1.5x2"])
def test_sizes_that_are_none_raise(text):
    with pytest.raises(InputError, match="positive HEIGHTxWIDTH"):
        parse_size(text)
    assert parse_size("800x1333") == (800, 1333)


def test_options_are_parsed():
    module = parse_implementation("LDAAQU:reduction=2,position_bias=false,offset_range=3").build(8)
    assert module.proj_q.out_channels == 4
    assert module.relative_position_bias_table is None


@pytest.mark.parametrize(
    "text, message",
    [
        ("CARAFE:kernel_size=]", "options are NAME:OPTION=VALUE"),
        ("CARAFE:kernel_size=2", "kernel_size must be odd and positive, got 2"),
        ("LDAAQU:reduction", "reduction"),
        ("LDAAQU:backend=cuda", "unknown backend 'cuda'; known: auto, .*plain"),
    ],
)
def test_options_that_are_none_raise(text, message):
    with pytest.raises(InputError, match=message):
        select_implementations([text], "cpu")


def test_a_backend_that_cannot_run_raises_with_its_reason(monkeypatch):
    broken = replace(BACKENDS["cpp"], unavailable=lambda device: f"no luck on {device}")
    monkeypatch.setitem(BACKENDS, "cpp", broken)
    labels = [i.label for i in select_implementations(["LDAAQU"], "cpu")]
    assert "LDAAQU (plain)" in labels and "LDAAQU (cpp)" not in labels
    assert backend_reasons("cpu")["cpp"] == "no luck on cpu"
    with pytest.raises(InputError, match="'cpp' cannot run on cpu: no luck on cpu"):
        select_implementations(["LDAAQU:backend=cpp"], "cpu")


@pytest.mark.parametrize(
    "names, with_published",
    [
        (["LDAAQU:backend=plain", "Nearest"], True),
        (["LDAAQU:reduction=16"], False),
        (["Nearest"], False),
    ],
)
def test_the_published_algorithm_is_measured_with_what_it_is_compared_to(names, with_published):
    labels = [i.label for i in select_implementations(names, "cpu")]
    assert labels == [PUBLISHED] * with_published + names


def test_every_upsampler_and_every_backend_is_measured_by_default():
    everything = select_implementations(None, "cpu")
    assert everything[0].label == PUBLISHED
    assert any(i.label == "LDAAQU (plain)" for i in everything)
    assert {i.upsampler for i in everything} == set(UPSAMPLER_REGISTRY)
    assert len({i.label for i in everything}) == len(everything)


def test_the_backends_and_the_published_algorithm_have_the_same_parameters():
    states = [
        ModuleWorkload(i, STEP, Setting()).build().state_dict()
        for i in select_implementations(["LDAAQU"], "cpu")
    ]
    assert len(states) > 1
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[key], states[0][key]) for key in state)
    assert states[0]["conv_offset.3.weight"].abs().max() > 0.01  # else nothing is sampled off base


@pytest.mark.parametrize(
    "setting, dtype",
    [
        (Setting(memory_format="channels_last"), torch.float32),
        (Setting(autocast="bfloat16", batch_size=3), torch.bfloat16),
    ],
)
def test_gradients_of_input_and_parameters_are_computed(setting, dtype):
    workload = ModuleWorkload(parse_implementation("LDAAQU"), STEP, setting, backward=True)
    output, grad_x, *gradients = workload.prepare()()
    assert output.shape == (setting.batch_size, 32, 8, 12)
    assert grad_x.shape == (setting.batch_size, 32, 4, 6)
    assert {output.dtype, grad_x.dtype} == {dtype}
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    assert len(gradients) == len(list(LDAAQU(32).parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_forward_alone_keeps_nothing_for_a_backward_pass():
    output = ModuleWorkload(parse_implementation("LDAAQU"), STEP, Setting()).prepare()()
    assert output.shape == (1, 32, 8, 12)
    assert not output.requires_grad


@pytest.mark.parametrize("part", PARTS)
def test_models_run_under_autocast(tiny_config, monkeypatch, part):
    build, dtypes = ModelWorkload.build, set()

    def build_watched(self):
        model = build(self)
        model.backbone.register_forward_hook(
            lambda module, inputs, maps: dtypes.update(x.dtype for x in maps.values())
        )
        return model

    monkeypatch.setattr(ModelWorkload, "build", build_watched)
    setting = Setting(autocast="bfloat16", batch_size=2)
    ModelWorkload(str(tiny_config), setting, part=part, image_size=(64, 64)).prepare()()
    assert dtypes == {torch.bfloat16}


@pytest.mark.parametrize(
    "files, labels",
    [
        (("x/near.yaml", "x/lda_aqu.yaml"), ("near", "lda_aqu")),
        (("x/model.yaml", "y/model.yaml"), ("x/model.yaml", "y/model.yaml")),
    ],
)
def test_models_of_two_files_have_two_names(files, labels):
    models = compared_models(files, Setting(), ["SEED", "1"])
    assert {label: m.config_file for label, m in models.items()} == dict(
        zip(labels, files, strict=True)
    )
