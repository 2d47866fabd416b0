"""What the README says of the config is what the config is."""

import re

from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config
from lda_aqu import UPSAMPLER_REGISTRY
from lda_aqu.engine import load_config
from paths import ROOT


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
