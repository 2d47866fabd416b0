import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from lda_aqu.errors import InputError
from lda_aqu.visualization import CocoResults

HEIGHT, WIDTH = 40, 60
CATEGORIES = [5, 9]
RECORDS = {
    image_id: {"image_id": image_id, "height": HEIGHT, "width": WIDTH} for image_id in (7, 3, 12)
}
GOOD = {"image_id": 3, "category_id": 9, "score": 0.5, "bbox": [1, 2, 3, 4]}


@pytest.fixture
def open_results(tmp_path):
    class_of_category = {category: index for index, category in enumerate(CATEGORIES)}
    metadata = Metadata(name="pets", thing_dataset_id_to_contiguous_id=class_of_category)

    def open_results(content) -> CocoResults:
        file = tmp_path / "results.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return CocoResults(file, list(RECORDS.values()), metadata)

    return open_results


def rle(height: int, width: int) -> dict:
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    return {"size": [height, width], "counts": mask_util.encode(mask)["counts"].decode()}


@pytest.mark.parametrize("with_masks", [True, False])
def test_what_detectron2_writes_is_read_back(open_results, with_masks):
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_boxes = Boxes(torch.tensor([[10.0, 5, 30, 25], [1, 2, 3.5, 4]]))
    instances.scores = torch.tensor([0.75, 0.25])
    instances.pred_classes = torch.tensor([1, 0])
    if with_masks:
        instances.pred_masks = torch.rand(2, HEIGHT, WIDTH) > 0.5
    written = instances_to_coco_json(instances, 7)
    for result in written:  # as COCOEvaluator does
        result["category_id"] = CATEGORIES[result["category_id"]]

    results = open_results(written)
    read = results.predict(RECORDS[7])["instances"]
    assert read.image_size == (HEIGHT, WIDTH)
    assert torch.equal(read.pred_boxes.tensor, instances.pred_boxes.tensor)
    assert torch.equal(read.scores, instances.scores)
    assert torch.equal(read.pred_classes, instances.pred_classes)
    assert read.has("pred_masks") == with_masks
    if with_masks:
        assert torch.equal(read.pred_masks, instances.pred_masks)
    assert len(results.predict(RECORDS[12])["instances"]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", "is not JSON"),
        ({"annotations": []}, "a dict, not a list"),
        ([GOOD, 5], "result 1, 5, is no detection"),
        ([{**GOOD, "image_id": 4}], "of dataset 'pets': KeyError: 4"),
        ([{**GOOD, "category_id": 1}], "of dataset 'pets': KeyError: 1"),
        ([{**GOOD, "image_id": [3]}], "unhashable type: 'list'"),
        ([{k: v for k, v in GOOD.items() if k != "score"}], "KeyError: 'score'"),
        ([{**GOOD, "bbox": [1, 2, 3]}], r"'bbox': \[1, 2, 3\].* AssertionError"),
        ([{**GOOD, "bbox": [1, 2, 3, "4"]}], r"'bbox': \[1, 2, 3, '4'\].*Error"),
        ([{**GOOD, "score": float("nan")}], "a number is not finite"),
        ([{**GOOD, "segmentation": rle(HEIGHT, WIDTH + 1)}], r"is of the size \[40, 61\]"),
        ([{**GOOD, "segmentation": {**rle(1, 1), "size": [10**6] * 2}}], "of the size"),
        ([{**GOOD, "segmentation": [[1, 1, 5, 1, 5, 5]]}], "TypeError"),
    ],
)
def test_a_file_of_another_format_is_named_with_the_value(open_results, content, message):
    with pytest.raises(InputError, match=rf"results\.json.*{message}"):
        open_results(content)


@pytest.mark.parametrize(
    "segmentations",
    [
        [{"size": [HEIGHT, WIDTH], "counts": "not an RLE"}],
        [{"size": [HEIGHT, WIDTH]}],
        [rle(HEIGHT, WIDTH), None],
    ],
)
def test_a_damaged_mask_is_named(open_results, segmentations):
    results = open_results([{**GOOD, "segmentation": mask} for mask in segmentations])
    with pytest.raises(InputError, match=r"results\.json: .*image 3"):
        results.predict(RECORDS[3])


def test_a_missing_file_and_a_dataset_without_instances_are_named(tmp_path):
    gone = tmp_path / "gone.json"
    things = Metadata(name="things", thing_dataset_id_to_contiguous_id={})
    with pytest.raises(InputError, match=r"gone\.json. cannot be read"):
        CocoResults(gone, [], things)
    with pytest.raises(InputError, match="'semantic' has no instances"):
        CocoResults(gone, [], Metadata(name="semantic"))
