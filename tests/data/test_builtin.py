import json
import os
import subprocess
import sys

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES, COCO_CATEGORIES
from lda_aqu.data.builtin import CAMVID_CLASSES
from lda_aqu.data.glyphs import GLYPHS_CATEGORIES, generate_glyphs
from lda_aqu.data.registration import panoptic_classes
from PIL import Image

GLYPHS_THINGS = [c for c in GLYPHS_CATEGORIES if c["isthing"]]
GLYPHS_STUFF = [c for c in GLYPHS_CATEGORIES if not c["isthing"]]
COUNTS = {"train": 3, "val": 2}
INSTANCES = {"bccd": ["RBC", "WBC", "Platelets"], "dsb2018": ["nucleus"]}

# Datasets are registered on import, under the folder that the environment names then.
SCRIPT = """
import json, sys
import lda_aqu.data
from detectron2.data import DatasetCatalog, MetadataCatalog
json.dump({
    name: {"records": DatasetCatalog.get(name), "metadata": MetadataCatalog.get(name).as_dict()}
    for name in sys.argv[1:]
}, sys.stdout)
"""


def load(root, *names: str) -> dict:
    """{name: {records, metadata}} of datasets as registered under a root."""
    environment = os.environ | {"DETECTRON2_DATASETS": str(root)}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, *names]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    generate_glyphs(root / "glyphs", COUNTS["train"], COUNTS["val"], size=64, seed=0)
    for split in COUNTS:
        for folder, suffix in (("images", ".jpg"), ("labels", ".png")):
            (root / "camvid" / folder / split).mkdir(parents=True)
            for number in range(COUNTS[split]):
                picture = Image.new("L", (8, 6), number)
                picture.save(root / "camvid" / folder / split / f"{number}{suffix}")
    for name, classes in INSTANCES.items():
        (root / name / "annotations").mkdir(parents=True)
        for split in COUNTS:
            content = {
                "images": [{"id": 5, "file_name": f"{split}.png", "width": 8, "height": 6}],
                "annotations": [{"id": 1, "image_id": 5, "category_id": 1, "bbox": [1, 2, 3, 4]}],
                "categories": [{"id": i, "name": c} for i, c in enumerate(classes, 1)],
            }
            (root / name / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def datasets(root):
    kinds = ("glyphs", "glyphs_sem_seg", "glyphs_panoptic", "camvid", *INSTANCES)
    return load(root, *[f"{kind}_{split}" for kind in kinds for split in ("train", "val")])


@pytest.mark.parametrize("split", ["train", "val"])
def test_glyphs_for_each_task_are_the_same_images(datasets, root, split):
    for kind in ("glyphs", "glyphs_sem_seg", "glyphs_panoptic"):
        files = [record["file_name"] for record in datasets[f"{kind}_{split}"]["records"]]
        assert files == sorted(map(str, (root / "glyphs" / split).iterdir()))
        assert len(files) == COUNTS[split]
    instances = datasets[f"glyphs_{split}"]
    panoptic = datasets[f"glyphs_panoptic_{split}"]
    for instance_record, record in zip(instances["records"], panoptic["records"], strict=True):
        stem = os.path.splitext(os.path.basename(record["file_name"]))[0]
        stuff = root / "glyphs" / f"panoptic_stuff_{split}" / f"{stem}.png"
        assert record == instance_record | {"sem_seg_file_name": str(stuff)}
    for record in datasets[f"glyphs_sem_seg_{split}"]["records"]:
        assert f"semantic_{split}" in record["sem_seg_file_name"]


def test_glyphs_metadata(datasets, root):
    things = [c["name"] for c in GLYPHS_THINGS]
    stuff = [c["name"] for c in GLYPHS_STUFF]
    instances, sem_seg, panoptic = (
        datasets[name]["metadata"]
        for name in ("glyphs_val", "glyphs_sem_seg_val", "glyphs_panoptic_val")
    )
    assert instances["evaluator_type"] == "coco"
    assert instances["thing_classes"] == things
    assert instances["thing_colors"] == [c["color"] for c in GLYPHS_THINGS]

    assert (sem_seg["evaluator_type"], sem_seg["ignore_label"]) == ("sem_seg", 255)
    assert sem_seg["stuff_classes"] == things + stuff
    assert len(sem_seg["stuff_colors"]) == len(things + stuff)

    assert (panoptic["evaluator_type"], panoptic["ignore_label"]) == ("coco_panoptic_seg", 255)
    assert panoptic["thing_classes"] == things
    assert panoptic["stuff_classes"] == ["things", *stuff]
    assert len(panoptic["stuff_colors"]) == 1 + len(stuff)
    assert len({tuple(c) for c in panoptic["stuff_colors"] + panoptic["thing_colors"]}) == 10
    for key in ("panoptic_root", "panoptic_json", "sem_seg_root", "json_file", "image_root"):
        assert os.path.exists(panoptic[key])
        assert "val" in os.path.basename(panoptic[key])
    assert "instances" in panoptic["json_file"]


def test_the_numbers_in_the_files_are_those_of_the_metadata(datasets):
    """By way of names: the panoptic JSON file's, the instances' and the stuff labels'."""
    panoptic = datasets["glyphs_panoptic_train"]
    metadata = panoptic["metadata"]
    with open(metadata["panoptic_json"]) as file:
        annotations = {a["image_id"]: a for a in json.load(file)["annotations"]}
    for record in panoptic["records"]:
        ids = [s["category_id"] for s in annotations[record["image_id"]]["segments_info"]]
        things = [metadata["thing_classes"][a["category_id"]] for a in record["annotations"]]
        assert sorted(things) == sorted(
            c["name"] for i in ids for c in GLYPHS_THINGS if c["id"] == i
        )
        labels = set(np.unique(Image.open(record["sem_seg_file_name"])).tolist()) - {0, 255}
        stuff = [metadata["stuff_classes"][label] for label in labels]
        assert sorted(stuff) == sorted(c["name"] for c in GLYPHS_STUFF if c["id"] in ids)


def test_panoptic_classes_are_numbered_as_detectron2_numbers_coco():
    ours = panoptic_classes(COCO_CATEGORIES)
    theirs = MetadataCatalog.get("coco_2017_val_panoptic_separated").as_dict()
    assert len(ours.pop("stuff_classes")) == len(theirs["stuff_classes"]) == 54
    assert ours == {key: theirs[key] for key in ours}


def test_camvid(datasets, root):
    for split in ("train", "val"):
        camvid = datasets[f"camvid_{split}"]
        assert camvid["records"] == [
            {
                "file_name": f"{root}/camvid/images/{split}/{number}.jpg",
                "sem_seg_file_name": f"{root}/camvid/labels/{split}/{number}.png",
            }
            for number in range(COUNTS[split])
        ]
        metadata = camvid["metadata"]
        assert (metadata["evaluator_type"], metadata["ignore_label"]) == ("sem_seg", 255)
        assert metadata["stuff_classes"][:5] == ["sky", "building", "pole", "road", "pavement"]
        assert len(metadata["stuff_classes"]) == len(metadata["stuff_colors"]) == 11


@pytest.mark.parametrize("name", INSTANCES)
def test_cells_and_nuclei(datasets, root, name):
    for split in COUNTS:
        dataset = datasets[f"{name}_{split}"]
        (record,) = dataset["records"]
        assert record["file_name"] == f"{root}/{name}/images/{split}.png"
        assert [a["category_id"] for a in record["annotations"]] == [0]
        assert dataset["metadata"]["evaluator_type"] == "coco"
        assert dataset["metadata"]["thing_classes"] == INSTANCES[name]


def test_classes_of_the_real_camvid_are_in_this_order(shared_data):
    # In a street the sky is on top and the road at the bottom.
    rows = {name: [] for name in CAMVID_CLASSES}
    for file in sorted((shared_data / "camvid" / "labels" / "val").iterdir())[::10]:
        label = np.asarray(Image.open(file))
        for number, values in enumerate(rows.values()):
            values += np.flatnonzero((label == number).any(1)).tolist()
    means = {name: np.mean(values) for name, values in rows.items() if values}
    assert min(means, key=means.get) == "sky"
    assert max(means, key=means.get) == "road"


def test_ade20k_and_coco_panoptic_are_detectron2s():
    ade20k = MetadataCatalog.get("ade20k_sem_seg_val")
    assert ade20k.stuff_classes == ADE20K_SEM_SEG_CATEGORIES
    assert ade20k.sem_seg_root.endswith("ADEChallengeData2016/annotations_detectron2/validation")
    coco = MetadataCatalog.get("coco_2017_train_panoptic_separated")
    assert coco.sem_seg_root.endswith("coco/panoptic_stuff_train2017")
