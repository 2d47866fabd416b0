import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from lda_aqu.data import register_coco_format_datasets
from lda_aqu.errors import InputError

SEMANTIC = {"IMAGES": "images", "SEMANTIC_LABELS": "images", "CLASSES": ["sky", "road"]}


@pytest.fixture
def register(tiny_coco, monkeypatch):
    """Register an entry under the name "own", with paths relative to tiny_coco."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_coco))
    return lambda entry: register_coco_format_datasets(
        CfgNode({"own": CfgNode(entry) if isinstance(entry, dict) else entry})
    )


@pytest.mark.parametrize(
    "entry, message",
    [
        (3, "own is 3, but needs keys: ANNOTATIONS, IMAGES, or "),
        ({}, "own has no keys; it needs ANNOTATIONS, IMAGES, or ANNOTATIONS, IMAGES, PANOPTIC"),
        (
            {"ANNOTATIONS": "a.json"},
            "own has ANNOTATIONS alone; it needs ANNOTATIONS, IMAGES, or ",
        ),
        (
            {"IMAGES": "images", "SEMANTIC_LABELS": "images"},
            "own has IMAGES, SEMANTIC_LABELS alone; .* or IMAGES, SEMANTIC_LABELS, CLASSES, IGNORE",
        ),
        (
            SEMANTIC | {"IGNORED_VALUE": 0},
            r"own\.IGNORED_VALUE is no key; did you mean IGNORE_VALUE\?; allowed are ANN",
        ),
        (
            {"ANNOTATIONS": "a.json", "IMAGES": "images"},
            r"own\.ANNOTATIONS: file '.*/a\.json' does not exist",
        ),
        (
            {"ANNOTATIONS": "annotations.json", "IMAGES": "annotations.json"},
            r"own\.IMAGES: folder '.*/annotations\.json' does not exist",
        ),
        (SEMANTIC | {"SEMANTIC_LABELS": 3}, r"own\.SEMANTIC_LABELS 3 must be a path, a string"),
        (SEMANTIC | {"CLASSES": []}, r"own\.CLASSES \[\] must be a list of names"),
        (SEMANTIC | {"CLASSES": "sky"}, r"own\.CLASSES 'sky' must be a list of names"),
        (SEMANTIC | {"CLASSES": ["sky", False]}, r"own\.CLASSES \['sky', False\] must be a list"),
        (
            SEMANTIC | {"IGNORE_VALUE": 256},
            r"own\.IGNORE_VALUE 256 must be an integer from 0 to 255",
        ),
        (SEMANTIC | {"IGNORE_VALUE": True}, r"own\.IGNORE_VALUE True must be an integer"),
    ],
)
def test_mistakes_name_the_key_and_what_is_allowed(register, entry, message):
    with pytest.raises(InputError, match=rf"^DATASETS\.COCO_FORMAT\.{message}"):
        register(entry)
    assert "own" not in DatasetCatalog.list()


def test_a_name_is_of_one_dataset(register):
    register(SEMANTIC)
    try:
        register(SEMANTIC | {"IGNORE_VALUE": 255})  # the same
        with pytest.raises(InputError, match="own: a dataset of that name exists"):
            register(SEMANTIC | {"CLASSES": ["road", "sky"]})
    finally:
        DatasetCatalog.remove("own")
