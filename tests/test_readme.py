"""What the README says of the config is what the config is."""

import re

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config
from lda_aqu import UPSAMPLER_REGISTRY
from lda_aqu.engine import load_config
from paths import ROOT

SHARED_OPTIONS = ROOT / "projects/LDAAQU/lda_aqu/benchmark/command_line.py"


def leaves(node: CfgNode, prefix: str = "") -> dict[str, object]:
    result = {}
    for key, value in node.items():
        if isinstance(value, CfgNode) and value:
            result |= leaves(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def test_the_table_of_keys_is_complete_and_its_defaults_are_right():
    theirs = get_cfg()
    add_deeplab_config(theirs)
    before = leaves(theirs)
    added = {key: v for key, v in leaves(load_config("", [])).items() if key not in before}
    rows = re.findall(
        r"^\| `([A-Z0-9_.]+)` \|.*\| (.+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    documented = {key: default.strip("`") for key, default in rows if "." in key}
    assert documented.pop("DATASETS.COCO_FORMAT") == "none"
    assert added.pop("DATASETS.COCO_FORMAT") == {}
    assert documented == {key: str(value) for key, value in added.items()}


def test_every_upsampler_is_named():
    text = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in text for name in UPSAMPLER_REGISTRY)


@pytest.mark.parametrize("file", ["README.md", "docs/unification.md"])
def test_links_lead_somewhere(file):
    text = (ROOT / file).read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert links
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors, link
        else:
            assert (ROOT / file).parent.joinpath(link).is_file(), link


def test_commands_name_files_and_options_that_there_are():
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.M)
    commands = "\n".join(blocks).replace("\\\n", " ")
    for path in re.findall(r"(?:configs|tools)/[\w/.-]+\.(?:yaml|py|sh)", commands):
        if "NAME" not in path:
            assert (ROOT / path).is_file(), path
    for tool, options in re.findall(r"python (tools/\w+\.py)([^\n#]*)", commands):
        sources = (ROOT / tool).read_text() + SHARED_OPTIONS.read_text()
        for option in re.findall(r"\s(--[a-z-]+)", options):
            assert f'"{option}"' in sources, (tool, option)
