"""A user's own panoptic and semantic datasets from YAML alone: checked, trained on, drawn."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from engine.runs import finish, log, metrics
from lda_aqu.data.glyphs import GLYPHS_CATEGORIES
from lda_aqu.engine import check_datasets, load_config
from lda_aqu.errors import InputError
from paths import ROOT
from PIL import Image

THINGS = [category["name"] for category in GLYPHS_CATEGORIES if category["isthing"]]
STUFF = [category["name"] for category in GLYPHS_CATEGORIES if not category["isthing"]]

TINY = """
DATASETS:
  TRAIN: ("own_train",)
  TEST: ("own_val",)
INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64, CROP: {ENABLED: False}}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 2, WARMUP_ITERS: 1, BASE_LR: 0.001}
DATALOADER: {NUM_WORKERS: 0}
"""


@pytest.fixture
def own(tiny_glyphs, tmp_path):
    """A copy of the glyphs, and a function that writes a config with entries for its splits."""
    root = tmp_path / "own"
    shutil.copytree(tiny_glyphs, root)

    def write(base: str, entry: str, model: str) -> Path:
        entries = "\n".join(f"    own_{s}: {{{entry.format(split=s)}}}" for s in ("train", "val"))
        path = tmp_path / "own.yaml"
        path.write_text(
            f"_BASE_: {ROOT}/configs/Small/{base}\n{TINY}".replace(
                "DATASETS:", f"DATASETS:\n  COCO_FORMAT:\n{entries.replace('@', f'{root}/')}"
            )
            + f"MODEL: {{DEVICE: cpu, {model}}}\nOUTPUT_DIR: {tmp_path}/output\n"
        )
        return path

    yield root, write
    for name in ("own_train", "own_val"):
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.pop(name, None)


@pytest.fixture
def panoptic(own):
    """The folder of a panoptic dataset, and the config that trains on it."""
    return own[0], own[1](
        "panoptic_fpn_R_18_glyphs_lda_aqu.yaml",
        "ANNOTATIONS: @annotations/instances_{split}.json, IMAGES: @{split}, "
        "PANOPTIC_ANNOTATIONS: @annotations/panoptic_{split}.json, "
        "PANOPTIC_LABELS: @panoptic_{split}, SEMANTIC_LABELS: @panoptic_stuff_{split}",
        "FPN: {OUT_CHANNELS: 16}, ROI_BOX_HEAD: {CONV_DIM: 16, FC_DIM: 16}, "
        "ROI_MASK_HEAD: {CONV_DIM: 16}, SEM_SEG_HEAD: {CONVS_DIM: 16}",
    )


@pytest.fixture
def semantic(own):
    """The folder of a semantic dataset, its images PNGs and 0 ignored, and its config."""
    root, write = own
    for split in ("train", "val"):
        for image in (root / split).iterdir():
            Image.open(image).save(image.with_suffix(".png"))
            image.unlink()
        for label in (root / f"semantic_{split}").iterdir():
            Image.fromarray(np.asarray(Image.open(label)) + np.uint8(1)).save(label)
    return root, write(
        "semantic_fpn_R_18_camvid_lda_aqu.yaml",
        "IMAGES: @{split}, SEMANTIC_LABELS: @semantic_{split}, IGNORE_VALUE: 0, "
        f"CLASSES: [void, {', '.join(THINGS)}, {', '.join(STUFF)}]".replace(" 4, 8", " '4', '8'"),
        "FPN: {OUT_CHANNELS: 16}, SEM_SEG_HEAD: {CONVS_DIM: 32, NUM_CLASSES: 10, IGNORE_VALUE: 0}",
    )


def train_evaluate_and_draw(root: Path, config: Path, run_tool) -> set[str]:
    """Check, train, evaluate and draw; the names of the metrics."""
    output = config.parent / "output"
    check_datasets(load_config(str(config), []), train=True)
    assert finish(config) == 0, log(config)
    status = run_tool(
        "visualize_predictions.py",
        *("--config-file", config, "--weights", output / "model_final.pth"),
        *("--dataset", "own_val", "--output", output / "drawn"),
    )
    assert status == 0
    with Image.open(output / "drawn" / "000000000001.png") as picture:
        assert picture.width > 2 * 360  # the prediction beside the ground truth, both enlarged
    return set(metrics(output)[-1])


def test_panoptic(panoptic, run_tool):
    names = train_evaluate_and_draw(*panoptic, run_tool)
    assert {"panoptic_seg/PQ", "bbox/AP", "segm/AP", "sem_seg/mIoU"} <= names
    assert {f"panoptic_seg/PQ-{name}" for name in THINGS + STUFF} <= names
    metadata = MetadataCatalog.get("own_train")
    assert metadata.thing_classes == THINGS
    assert metadata.stuff_classes == ["things", *STUFF]
    builtin = MetadataCatalog.get("glyphs_panoptic_train").as_dict()
    roots = ("name", "root", "json", "json_file")
    assert {k: v for k, v in metadata.as_dict().items() if not k.endswith(roots)} == {
        k: v for k, v in builtin.items() if not k.endswith(roots)
    }


def test_semantic(semantic, run_tool):
    names = train_evaluate_and_draw(*semantic, run_tool)
    assert {"sem_seg/mIoU", "sem_seg/BoundaryIoU"} <= names
    assert {f"sem_seg/IoU-{name}" for name in ["void", *THINGS, *STUFF]} <= names


def paint(label: Path, value: int) -> None:
    pixels = np.array(Image.open(label))
    pixels[0, 0] = value
    Image.fromarray(pixels).save(label)


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda content: content.pop("categories"),
            r"panoptic_train.json' is not in COCO's panoptic format: KeyError: 'categories'",
        ),
        (
            lambda content: content["categories"][0].pop("isthing"),
            r"panoptic_train.json' is not in COCO's panoptic format: KeyError: 'isthing'",
        ),
        (
            lambda content: content["categories"][0].update(name="B"),
            r"instances_train.json' cannot be read: .*'thing_classes' .* cannot be set",
        ),
    ],
)
def test_damaged_panoptic_annotations(panoptic, damage, message):
    root, config = panoptic
    edit(root / "annotations" / "panoptic_train.json", damage)
    with pytest.raises(InputError, match=f"dataset own_train: .*{message}"):
        check_datasets(load_config(str(config), []), train=True)


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda root: (root / "train" / "000000000002.png").unlink(),
            r"1 of 3 files are missing in .*train/000000000002\.png'",
        ),
        (
            lambda root: (root / "train" / "000000000002.png").rename(root / "train" / "2.tif"),
            r"has images of the suffixes \.png, \.tif; .* all have the same one of \.bmp",
        ),
        (
            lambda root: paint(root / "semantic_train" / "000000000002.png", 12),
            r"semantic_train/000000000002\.png' has the values 12; allowed are 0 to 9, and 0 for",
        ),
    ],
)
def test_damaged_semantic_files(semantic, damage, message):
    root, config = semantic
    damage(root)
    with pytest.raises(InputError, match=f"dataset own_train: .*{message}"):
        check_datasets(load_config(str(config), []), train=True)
