import re

import lda_aqu.modeling  # noqa: F401  (registers the builders)
import pytest
import torch
from detectron2.modeling import build_model
from lda_aqu import UPSAMPLER_REGISTRY, build_upsampler
from lda_aqu.engine import check_model, load_config
from lda_aqu.errors import InputError
from lda_aqu.upsamplers.user_files import import_upsampler_files
from paths import ROOT
from torch.nn import functional as F


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    """The upsampler that docs/upsamplers.md shows, in a file; it is forgotten after the test."""
    monkeypatch.setattr(UPSAMPLER_REGISTRY, "_classes", dict(UPSAMPLER_REGISTRY._classes))
    section = (ROOT / "docs/upsamplers.md").read_text().split("\n## Your own upsampler")[1]
    path = tmp_path / "my_upsampler.py"
    path.write_text(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1])
    return path


def test_is_built_by_name(own_file, caplog):
    assert len([line for line in own_file.read_text().splitlines() if line]) <= 10
    for _ in range(2):  # a file is run once
        import_upsampler_files([str(own_file)])
    assert caplog.messages == [f"Running {own_file}, as MODEL.UPSAMPLER_FILES says"]
    x = torch.randn(1, 4, 3, 5)
    y = build_upsampler("Interpolated", 4, mode="area")(x, output_size=(7, 9))
    assert torch.equal(y, F.interpolate(x, (7, 9), mode="area"))


@pytest.mark.parametrize("where", ["file", "options"])
def test_is_a_config_away(own_file, tiny_config, where):
    """Its options are keys in the very file, or command, that names it."""
    opts = ["MODEL.WEIGHTS", ""]
    if where == "file":
        text = tiny_config.read_text()
        text = text.replace("FPN: {", f'UPSAMPLER_FILES: ["{own_file}"]\n  FPN: {{')
        text = text.replace(
            "FPN: {", 'INTERPOLATED: {MODE: "area"}\n  FPN: {UPSAMPLER: Interpolated, '
        )
        tiny_config.write_text(text)
    else:
        opts += ["MODEL.UPSAMPLER_FILES", f"['{own_file}']"]
        opts += ["MODEL.FPN.UPSAMPLER", "Interpolated", "MODEL.INTERPOLATED.MODE", "area"]
    cfg = load_config(str(tiny_config), opts)
    upsampler = build_model(cfg).backbone.fpn_upsample2
    assert type(upsampler).__name__ == "Interpolated" and upsampler.mode == "area"


@pytest.mark.parametrize("value", ["['none.py']", "['.']", "none.py"])
def test_a_file_that_cannot_be_used(value):
    with pytest.raises(InputError, match=r"MODEL\.UPSAMPLER_FILES.*"):
        load_config("", ["MODEL.UPSAMPLER_FILES", value])


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("class Interpolated", "class CARAFE", "'{}': an upsampler named 'CARAFE' is already"),
        ('"INTERPOLATED"', '"FPN"', r"'Interpolated': MODEL\.FPN has other keys than its options"),
        ('"INTERPOLATED"', '"CARAFE"', r"'Interpolated': MODEL\.CARAFE has other keys"),
    ],
)
def test_names_that_are_taken(own_file, old, new, message):
    own_file.write_text(own_file.read_text().replace(old, new))
    with pytest.raises(InputError, match=message.format(own_file)):
        load_config("", ["MODEL.UPSAMPLER_FILES", f"['{own_file}']"])


def test_a_defect_in_the_file_is_not_hidden(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("raise KeyError('mine')")
    for _ in range(2):  # it does not count as imported
        with pytest.raises(KeyError, match="mine"):
            load_config("", ["MODEL.UPSAMPLER_FILES", f"['{path}']"])


def test_a_model_that_it_cannot_be_built_for_says_where(own_file, tiny_config):
    lines = own_file.read_text().splitlines()
    (place,) = (n for n, line in enumerate(lines, 1) if "self.mode = mode" in line)
    own_file.write_text(own_file.read_text().replace("self.mode = mode", "self.kernel.shape"))
    opts = ["MODEL.UPSAMPLER_FILES", f"['{own_file}']", "MODEL.FPN.UPSAMPLER", "Interpolated"]
    message = f"no attribute 'kernel' \\({re.escape(str(own_file))}, line {place}\\)$"
    with pytest.raises(InputError, match=message):
        check_model(load_config(str(tiny_config), opts))
