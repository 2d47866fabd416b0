import re
from functools import partial

import lda_aqu.modeling  # noqa: F401  (registers the builders)
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from lda_aqu.engine import load_config


@pytest.fixture
def run(run_tool, tiny_config, tmp_path):
    """Run the tool on one or more models whose weights are random; return its exit status."""
    for seed in range(2):
        torch.manual_seed(seed)
        model = build_model(load_config(str(tiny_config), []))
        for name, parameter in model.named_parameters():
            if "conv_offset" in name:
                torch.nn.init.normal_(parameter, std=0.1 + 0.2 * seed)
        DetectionCheckpointer(model, str(tmp_path)).save(f"seed_{seed}")
    return partial(run_tool, "measure_sampling.py", "--config-file", tiny_config)


def test_several_models_are_taken_together(run, tmp_path, capsys):
    offsets = {}
    files = [tmp_path / f"seed_{seed}.pth" for seed in range(2)]
    for weights in (files[:1], files[1:], files):
        assert not run("--weights", *weights, "--limit", 2)
        table = re.findall(r"^\| (backbone\S+) +\| +([\d.]+)", capsys.readouterr().out, re.M)
        assert [name[-1] for name, _ in table] == ["4", "3", "2"]
        offsets[tuple(weights)] = [float(value) for _, value in table]
    first, second, both = offsets.values()
    assert all(a < b for a, b in zip(first, second, strict=True))
    assert both == pytest.approx(
        [(a + b) / 2 for a, b in zip(first, second, strict=True)], rel=0.01
    )


@pytest.mark.parametrize(
    "args, message",
    [
        (["--limit", 0], "--limit 0: must be at least 1"),
        (["--limit", 1, "DATASETS.TEST", "()"], "DATASETS.TEST is empty"),
        (["gone.pth", "--limit", 1, "DATASETS.TEST", "()"], "gone.pth"),
        (["--limit", 1, "MODEL.FPN.UPSAMPLER", "Nearest"], "have another upsampler at backbone"),
    ],
)
def test_a_mistake_is_one_line(run, tmp_path, args, message, capsys):
    assert run("--weights", tmp_path / "seed_0.pth", *args) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]


def test_a_model_without_local_attention(run, tmp_path, capsys):
    weights = torch.load(tmp_path / "seed_0.pth")["model"]
    kept = {name: value for name, value in weights.items() if "fpn_upsample" not in name}
    torch.save({"model": kept}, tmp_path / "nearest.pth")
    args = ("--weights", tmp_path / "nearest.pth", "--limit", 1, "MODEL.FPN.UPSAMPLER", "Nearest")
    assert run(*args) == 2
    assert "no upsampler of local attention" in capsys.readouterr().err
