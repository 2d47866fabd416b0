"""What the README and the pages of docs/ say of configs, files and commands is so."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg, instantiate
from detectron2.modeling import BACKBONE_REGISTRY, ROI_MASK_HEAD_REGISTRY, SEM_SEG_HEADS_REGISTRY
from detectron2.projects.deeplab import add_deeplab_config
from lda_aqu import LDAAQU, UPSAMPLER_REGISTRY
from lda_aqu.engine import load_config
from lda_aqu.engine.config_merge import config_items
from paths import ROOT
from torch import nn
from torchvision.models import detection
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted((ROOT / "tools").glob("*.sh"))


def test_the_table_of_keys_is_complete_and_its_defaults_are_right():
    theirs, ours = get_cfg(), load_config("", [])
    add_deeplab_config(theirs)
    before = dict(config_items(theirs))
    added = {key: value for key, value in config_items(ours) if key not in before}
    text = "\n".join(page.read_text() for page in PAGES)
    rows = re.findall(r"^\| `([A-Z0-9_.]+)` \|.*\| (.+) \|$", text, re.MULTILINE)
    rows = [(key, default.strip("`")) for key, default in rows if "." in key]
    documented = dict(rows)
    assert len(documented) == len(rows)  # each is in one place
    assert documented.pop("DATASETS.COCO_FORMAT") == "none" and ours.DATASETS.COCO_FORMAT == {}
    assert documented == {key: str(value) for key, value in added.items()}


def test_every_upsampler_is_named():
    text = (ROOT / "docs/upsamplers.md").read_text()
    assert all(f"`{name}`" in text for name in UPSAMPLER_REGISTRY)


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch):
    def detector(weights: str) -> FasterRCNN:  # a smaller one, and nothing is downloaded
        assert weights == "DEFAULT"
        return FasterRCNN(resnet_fpn_backbone(backbone_name="resnet18", weights=None), 2)

    monkeypatch.setattr(detection, "fasterrcnn_resnet50_fpn", detector)
    monkeypatch.chdir(tmp_path)
    config, *_ = blocks("README.md", "yaml")
    Path("your_config.yaml").write_text(config)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Upsample(scale_factor=2))
    names = {"x": torch.randn(1, 256, 3, 4), "model": model}
    for block in blocks("README.md", "python"):
        exec(block, names)
    assert names["y"].shape == (1, 256, 200, 333)
    assert isinstance(model[1], LDAAQU)
    assert isinstance(names["detector"].backbone.fpn.upsamplers[0], LDAAQU)
    cfg = names["cfg"]
    assert cfg.MODEL.BACKBONE.NAME in BACKBONE_REGISTRY
    assert cfg.MODEL.SEM_SEG_HEAD.NAME in SEM_SEG_HEADS_REGISTRY
    assert cfg.MODEL.ROI_MASK_HEAD.NAME in ROI_MASK_HEAD_REGISTRY


def test_a_lazy_config_of_detectron2_with_another_pyramid():
    (block,) = blocks("docs/configs.md", "python")
    names: dict = {}
    exec(block, names)
    backbone = instantiate(names["model"].backbone)
    assert backbone(torch.zeros(1, 3, 64, 64))["p2"].shape == (1, 256, 16, 16)
    upsamplers = [module for module in backbone.modules() if isinstance(module, LDAAQU)]
    assert [u.proj_q.out_channels for u in upsamplers] == [256 // 16] * 3


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    return [link for link in found if "://" not in link]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert links(page)
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_links_to_every_page():
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= set(links(PAGES[0]))


@pytest.fixture(scope="module")
def helps() -> dict[tuple[str, ...], set[str]]:
    """The options that a tool, or one of its commands, says it has; filled as they are asked."""
    return {}


@pytest.mark.parametrize("page", [*PAGES, *SCRIPTS], ids=lambda page: page.name)
def test_commands_name_files_and_options_that_there_are(page, helps, run_tool, capsys):
    text = page.read_text()
    if page in PAGES:
        text = "\n".join(re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    commands = text.replace("\\\n", " ")
    for path in re.findall(r"(?<![\w/])(?:configs|tools|tests)/[\w/.-]+\.(?:yaml|py|sh)", commands):
        if "NAME" not in path:
            assert (ROOT / path).is_file(), path
    run = r"(?<![\w/.])(train_net\.py|tools/\w+\.(?:py|sh))((?: [a-z]+)?)([^\n#]*)"
    for tool, command, options in re.findall(run, commands):
        named = set(re.findall(r"\s(--[a-z-]+)", options))
        # It resumes what is in the folder: the default one would be shared by all experiments.
        assert tool != "tools/slurm_train.sh" or "OUTPUT_DIR" in options
        called = ("train_net.py" if tool == "tools/slurm_train.sh" else tool, *command.split())
        if named and called not in helps:
            assert run_tool(ROOT / called[0], *called[1:], "--help") == 0
            shown = capsys.readouterr().out
            helps[called] = set(re.findall(r"^ +(?:-\w, )?(--[\w-]+)", shown, re.MULTILINE))
        assert not named or named <= helps[called], (tool, command, named - helps[called])
