import pytest
from lda_aqu.benchmark.comparison import (
    Comparison,
    Cost,
    compared_upsamplers,
    comparison_tables,
    is_published_model,
    published_table,
    read_results,
    trained_parameters,
    upsampler_keys,
)
from lda_aqu.benchmark.flops import FlopCount
from lda_aqu.benchmark.implementations import parse_implementation
from lda_aqu.benchmark.model_workload import ModelWorkload
from lda_aqu.benchmark.published_figures import (
    ADDED_TO_FASTER_RCNN,
    ADDED_TO_PANOPTIC_FPN,
    PUBLISHED_RESULTS,
)
from lda_aqu.errors import InputError
from lda_aqu.upsamplers import UPSAMPLER_REGISTRY
from paths import ROOT

LABELS = ["Nearest", "LDAAQU", "LDAAQU:reduction=16"]


def test_every_registered_upsampler_and_the_published_variants_are_compared():
    compared = compared_upsamplers(None)
    assert {i.upsampler for i in compared} == set(UPSAMPLER_REGISTRY)
    variants = {i.label for i in compared if i.options}
    assert variants <= {result.upsampler for result in PUBLISHED_RESULTS}


@pytest.mark.parametrize("result", PUBLISHED_RESULTS, ids=lambda result: result.name)
def test_what_is_published_can_be_built(result):
    parse_implementation(result.upsampler).build(256)


def test_options_become_config_keys(tiny_config):
    keys = upsampler_keys(parse_implementation("LDAAQU:reduction=2,position_bias=false"))
    model = ModelWorkload(str(tiny_config), keys).build()
    assert model.backbone.fpn_upsample2.proj_q.out_channels == 8
    assert model.backbone.fpn_upsample2.relative_position_bias_table is None


def test_the_last_ap_is_read(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(
        '{"bbox/AP": 1.5, "iteration": 1}\n{"loss": 2}\n{"bbox/AP": 2.5}\n{"loss": 1}\n'
    )
    texts = [f"LDAAQU:reduction=16={path}", f"Nearest={path}"]
    assert read_results(texts, LABELS) == {"LDAAQU:reduction=16": 2.5, "Nearest": 2.5}


@pytest.mark.parametrize(
    "text, content, message",
    [
        ("Nearest", "", "give NAME=path"),
        ("Bilinear={path}", "", "one of the compared names: Nearest, LDAAQU, LDAAQU:reduction=16"),
        ("LDAAQU={path}.not", "", "cannot be read"),
        ("LDAAQU={path}", "not json", "cannot be read"),
        ("LDAAQU={path}", '{"segm/AP": 3.0}', "has no 'bbox/AP'"),
    ],
)
def test_results_that_cannot_be_used_raise(tmp_path, text, content, message):
    path = tmp_path / "metrics.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_results([text.format(path=path)], LABELS)


def test_parameters_of_the_published_model_are_those_published():
    config = f"{ROOT}/configs/COCO-Detection/faster_rcnn_R_50_FPN_1x_lda_aqu.yaml"
    counts = []
    for upsampler in ("Nearest", "LDAAQU"):
        opts = ("MODEL.FPN.UPSAMPLER", upsampler, "MODEL.FPN.TOPOLOGY", "published")
        model = ModelWorkload(config, opts)
        assert is_published_model(model.config())
        counts.append(trained_parameters(model.build()))
    assert round(counts[0] / 1e6, 1) == 46.8
    assert counts[1] - counts[0] == 4 * 39_410


@pytest.mark.parametrize(
    "label, number, published",
    [
        *((label, 4, text) for label, text in ADDED_TO_FASTER_RCNN.items()),
        *((label, 3, text) for label, text in ADDED_TO_PANOPTIC_FPN.items()),
    ],
)
def test_parameters_of_the_upsamplers_are_those_published(label, number, published):
    module = parse_implementation(label).build(256)
    parameters = trained_parameters(module)
    if label == "A2U":  # whose published figure is that of its convolutions' weights
        parameters = sum(p.numel() for p in module.parameters() if p.dim() > 1)
    value, unit = published.split()
    digits = len(value.partition(".")[2])
    assert f"{number * parameters / {'M': 1e6, 'K': 1e3}[unit]:.{digits}f}" == value


def cost(parameters: int, **uncounted: int) -> Cost:
    flops = FlopCount({"conv": 2e9}, uncounted)
    return Cost(parameters, flops, {"median": 0.5, "min": 0.4, "max": 0.6}, 2**20)


def test_parameters_stand_beside_those_published():
    comparisons = [
        Comparison("Nearest", cost(0), cost(41_480_000), 46_780_000),
        Comparison("LDAAQU", cost(39_410), cost(41_598_230), 46_937_640),
        Comparison("A2U", cost(10_790), cost(41_512_370), 46_823_160),
    ]
    table = published_table(comparisons)
    assert list(table.rows) == [
        ("Nearest", "46.8 M", "Faster R-CNN", "46.780 M", "41.480 M"),
        ("LDAAQU - Nearest", "0.158 M", "Faster R-CNN", "0.158 M", "0.118 M"),
        ("A2U - Nearest", "29.2 K", "Panoptic FPN", "43.2 K", "32.4 K"),
    ]
    assert published_table(comparisons[1:]) is None


def test_flops_that_are_not_all_counted_are_marked():
    comparisons = [Comparison("Mine", cost(5, fft=1), cost(6), 7)]
    module, model = comparison_tables("", "", comparisons, {})
    assert "more than 2" in module.rows[0] and "more than 2" not in model.rows[0]
    assert "Mine: FLOPs without fft" in module.notes
    assert "Mine: FLOPs without fft" not in model.notes
