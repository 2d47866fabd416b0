import json

import pytest
import torch
from lda_aqu.benchmark.comparison import (
    compared_upsamplers,
    comparison_table,
    read_results,
    with_upsampler,
)
from lda_aqu.benchmark.implementations import parse_implementation
from lda_aqu.benchmark.model_workload import ModelWorkload
from lda_aqu.benchmark.published_figures import PUBLISHED_FIGURES
from lda_aqu.benchmark.settings import Setting, Step
from lda_aqu.errors import InputError
from lda_aqu.upsamplers import UPSAMPLER_REGISTRY
from lda_aqu.upsamplers.nearest import Nearest
from paths import ROOT

UNITS = {"M": 1e6, "K": 1e3, "MB": 1e6 / torch.float32.itemsize}  # parameters in one
LABELS = ["Nearest", "LDAAQU", "LDAAQU:reduction=16"]


def trained_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_every_registered_upsampler_and_the_published_variants_are_compared():
    compared = compared_upsamplers(None)
    assert {i.upsampler for i in compared} == set(UPSAMPLER_REGISTRY)
    assert {i.label for i in compared} == {*UPSAMPLER_REGISTRY, *PUBLISHED_FIGURES}
    assert [i.label for i in compared_upsamplers(LABELS)] == LABELS


def test_options_become_config_keys(tiny_config):
    upsampler = parse_implementation("LDAAQU:reduction=2,position_bias=false")
    model = with_upsampler(ModelWorkload(str(tiny_config), Setting()), upsampler).build()
    assert model.backbone.fpn_upsample2.proj_q.out_channels == 8
    assert model.backbone.fpn_upsample2.relative_position_bias_table is None


def test_the_last_ap_is_read(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"bbox/AP": 1.5, "iteration": 1}\n{"loss": 2}\n{"bbox/AP": 2.5}\n{"loss": 1}')
    texts = [f"LDAAQU:reduction=16={path}", f"Nearest={path}"]
    assert read_results(texts, LABELS) == {"LDAAQU:reduction=16": 2.5, "Nearest": 2.5}


def test_the_mean_ap_of_a_study_is_read(tmp_path):
    path, aps = tmp_path / "study.json", {"Nearest": (40.0, 41.0), "LDAAQU": (42.0, 43.0)}
    run = {
        **{"options": {}, "baseline": "Nearest", "seconds": 1.0, "peak_memory": 1.0},
        **{"config": {"file": "a.yaml", "options": [], "compared": ["MODEL.FPN.UPSAMPLER"]}},
        **{"device": "a CPU", "threads": 1, "jobs": 1, "commit": "abc", "versions": {}},
    }
    results = [
        {"seed": seed, "upsampler": name, "metrics": {"bbox/AP": ap}, **run}
        for name, values in aps.items()
        for seed, ap in enumerate(values)
    ]
    path.write_text(json.dumps(results))
    assert read_results([str(path)], LABELS) == {"Nearest": 40.5, "LDAAQU": 42.5}


@pytest.mark.parametrize(
    "text, content, message",
    [
        ("Nearest", "", "or NAME=path"),
        ("Bilinear={path}", "", "one of the compared names: Nearest, LDAAQU, LDAAQU:reduction=16"),
        ("LDAAQU={path}.not", "", "cannot be read"),
        ("LDAAQU={path}", "not json", "cannot be read"),
        ("LDAAQU={path}", '{"segm/AP": 3.0}', "no 'bbox/AP' in the file"),
    ],
)
def test_results_that_cannot_be_used_raise(tmp_path, text, content, message):
    path = tmp_path / "metrics.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_results([text.format(path=path)], LABELS)


def test_parameters_of_the_published_model_are_those_published():
    config = f"{ROOT}/configs/COCO-Detection/faster_rcnn_R_50_FPN_1x_lda_aqu.yaml"
    model = ModelWorkload(config, Setting(), ("MODEL.FPN.TOPOLOGY", "published"))
    nearest, lda_aqu = (
        trained_parameters(with_upsampler(model, parse_implementation(name)).build())
        for name in ("Nearest", "LDAAQU")
    )
    assert round(nearest / 1e6, 1) == 46.8
    assert lda_aqu - nearest == 4 * 39_410


@pytest.mark.parametrize("label", PUBLISHED_FIGURES)
def test_parameters_of_the_upsamplers_are_those_published(label):
    module = parse_implementation(label).build(256)
    parameters = trained_parameters(module)
    if label == "A2U":  # whose published figure is that of its convolutions' weights
        parameters = sum(p.numel() for p in module.parameters() if p.dim() > 1)
    if label in ("Nearest", "FreqFusion"):  # the latter has fewer, as its docstring explains
        assert parameters == {"Nearest": 0, "FreqFusion": 62_898}[label]
        return
    number, value, unit = PUBLISHED_FIGURES[label].added.replace(":", "").split()
    digits = len(value.partition(".")[2])
    assert f"{int(number) * parameters / UNITS[unit]:.{digits}f}" == value


def test_flops_that_are_not_all_counted_are_marked(monkeypatch, tiny_config):
    forward = Nearest.forward
    monkeypatch.setattr(
        Nearest, "forward", lambda self, x, *args: forward(self, torch.fft.fft(x).real, *args)
    )
    table = comparison_table(
        [parse_implementation("Nearest")],
        ModelWorkload(str(tiny_config), Setting(), image_size=(64, 64)),
        Step("small", 16, (4, 4), (8, 8)),
        measured_ap={},
        repeats=1,
    )
    assert table.rows[0]["GFLOPs"] is None and "-" in table.text()
    assert "Nearest: FLOPs unknown of _fft_r2c" in table.notes
