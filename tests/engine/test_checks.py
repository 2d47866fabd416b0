import json
import shutil

import pytest
import torch
from lda_aqu.engine import check_datasets, check_processes, check_weights, load_config
from lda_aqu.errors import InputError


@pytest.fixture
def own(tmp_path, tiny_coco):
    """A dataset of one's own, to damage: returns its folder and a function that checks it."""
    root = tmp_path / "own"
    shutil.copytree(tiny_coco, root)

    def check(*opts: object, name: str = f"own_{tmp_path.name}") -> None:
        config = tmp_path / "own.yaml"
        config.write_text(
            f"DATASETS: {{TRAIN: [{name}], TEST: [{name}], COCO_FORMAT: {{{name}: "
            f"{{ANNOTATIONS: {root}/annotations.json, IMAGES: {root}/images}}}}}}\n"
            "MODEL: {MASK_ON: True, ROI_HEADS: {NUM_CLASSES: 2}}\n"
            "INPUT: {MASK_FORMAT: bitmask}"
        )
        check_datasets(load_config(str(config), [str(opt) for opt in opts]), train=True)

    return root, check


def test_sound_dataset(own):
    own[1]()


@pytest.mark.parametrize(
    "opts, message",
    [
        (
            ["MODEL.ROI_HEADS.NUM_CLASSES", 80],
            "2 classes.*box, disc.*set MODEL.ROI_HEADS.NUM_CLASSES 2",
        ),
        (
            ["MODEL.META_ARCHITECTURE", "RetinaNet"],
            "MODEL.RETINANET.NUM_CLASSES is 80: set MODEL.RETINANET.NUM_CLASSES 2",
        ),
        (["INPUT.MASK_FORMAT", "polygon"], "set INPUT.MASK_FORMAT bitmask"),
        (["DATASETS.TEST", "('bccd_vall',)"], "DATASETS.TEST: no dataset 'bccd_vall'.*bccd_val"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
    ],
)
def test_config_that_does_not_fit(own, opts, message):
    with pytest.raises(InputError, match=message):
        own[1](*opts)


def test_missing_images_are_counted_and_named(own):
    root, check = own
    (root / "images" / "2.png").unlink()
    (root / "images" / "4.png").unlink()
    with pytest.raises(InputError, match=r"2 of 6 image files are missing.*2\.png"):
        check()


def test_annotations_that_are_not_coco(own):
    root, check = own
    (root / "annotations.json").write_text('{"images": [')
    with pytest.raises(InputError, match=r"annotations\.json' cannot be read"):
        check()


def test_annotations_without_masks(own):
    root, check = own
    content = json.loads((root / "annotations.json").read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = []
    (root / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"has no masks: set MODEL\.MASK_ON False"):
        check()


def test_missing_annotation_file_of_a_built_in_dataset(monkeypatch):
    cfg = load_config("", ["DATASETS.TEST", "('lvis_v1_val',)"])
    with pytest.raises(InputError, match=r"dataset lvis_v1_val: annotation file .* does not exist"):
        check_datasets(cfg, train=False)


def test_processes(monkeypatch):
    check_processes(1, "cpu")
    with pytest.raises(InputError, match=r"--num-gpus 0: must be at least 1"):
        check_processes(0, "cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=r"--num-gpus 8: this machine has 0 usable GPUs"):
        check_processes(8, "cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    check_processes(8, "cuda")
    with pytest.raises(InputError, match="needs MODEL.DEVICE cuda"):
        check_processes(8, "cpu")


def test_weights(tmp_path, caplog):
    check_weights(load_config("", ["MODEL.WEIGHTS", ""]))
    assert "random weights" in caplog.text
    check_weights(load_config("", ["MODEL.WEIGHTS", "detectron2://ImageNetPretrained/R-50.pkl"]))
    with pytest.raises(InputError, match=r"MODEL\.WEIGHTS '.*none\.pth' does not exist"):
        check_weights(load_config("", ["MODEL.WEIGHTS", str(tmp_path / "none.pth")]))
