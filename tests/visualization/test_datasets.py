import json
import shutil
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from lda_aqu.errors import InputError
from lda_aqu.visualization import class_metadata, load_dataset


@pytest.fixture
def annotations(tmp_path, tiny_coco) -> Path:
    """The annotation file of a copy of tiny_coco, registered as "copied_coco"."""
    file = tmp_path / "annotations.json"
    shutil.copy(tiny_coco / "annotations.json", file)
    register_coco_instances("copied_coco", {}, str(file), str(tiny_coco / "images"))
    yield file
    DatasetCatalog.remove("copied_coco")
    MetadataCatalog.remove("copied_coco")


def config(*test_datasets: str) -> CfgNode:
    cfg = get_cfg()
    cfg.DATASETS.TEST = test_datasets
    return cfg


def test_a_dataset_is_loaded_with_its_names(annotations):
    records, metadata = load_dataset("copied_coco", "--dataset")
    assert len(records) == 6
    assert metadata.thing_classes == ["box", "disc"]


def test_an_unknown_dataset_gets_the_nearest_names(annotations):
    with pytest.raises(InputError, match=r"--dataset.*'coped_coco'.*copied_coco"):
        load_dataset("coped_coco", "--dataset")


@pytest.mark.parametrize("content", [None, "not JSON", '{"images": [], "annotations": 5}'])
def test_a_dataset_that_cannot_be_loaded_is_named(annotations, content):
    if content is None:
        annotations.unlink()
    else:
        annotations.write_text(content)
    with pytest.raises(InputError, match="copied_coco"):
        load_dataset("copied_coco", "--dataset")


def test_wrong_labels_are_named(annotations):
    content = json.loads(annotations.read_text())
    content["annotations"][1]["id"] = content["annotations"][0]["id"]
    annotations.write_text(json.dumps(content))
    with pytest.raises(InputError, match="dataset copied_coco: .*ids in .* are not unique"):
        load_dataset("copied_coco", "--dataset")


def test_a_dataset_without_images_is_an_input_error(annotations):
    annotations.write_text(
        '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}'
    )
    with pytest.raises(InputError, match="has no images"):
        load_dataset("copied_coco", "--dataset")


def test_class_names_need_the_files_only_where_nothing_else_tells_them(annotations):
    assert class_metadata(config("copied_coco")).thing_classes == ["box", "disc"]
    annotations.unlink()
    assert class_metadata(config("copied_coco")).thing_classes == ["box", "disc"]
    assert class_metadata(config()).get("thing_classes") is None

    DatasetCatalog.register("nameless", list)
    try:
        with pytest.raises(InputError, match=r"dataset nameless has no images"):
            class_metadata(config("nameless"))
    finally:
        DatasetCatalog.remove("nameless")
        MetadataCatalog.remove("nameless")
