import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, BoxMode, Instances
from lda_aqu.errors import InputError
from lda_aqu.evaluation import InstanceEvaluator
from pycocotools import mask as mask_util


@pytest.fixture
def dataset(tmp_path, tiny_coco):
    """A copy of tiny_coco, registered as "copied_coco": a function that changes its annotations."""
    file = tmp_path / "annotations.json"
    content = json.loads((tiny_coco / "annotations.json").read_text())
    register_coco_instances("copied_coco", {}, str(file), str(tiny_coco / "images"))

    def change(change=lambda annotations: None) -> list[dict]:
        change(content["annotations"])
        file.write_text(json.dumps(content))
        return DatasetCatalog.get("copied_coco")

    yield change
    DatasetCatalog.remove("copied_coco")
    MetadataCatalog.remove("copied_coco")


def renumber(annotations: list[dict]) -> None:
    for number, annotation in enumerate(annotations):
        annotation["id"] = number


def as_predicted(record: dict) -> dict[str, Instances]:
    annotations = record["annotations"]
    instances = Instances((record["height"], record["width"]))
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    instances.pred_boxes = Boxes(torch.tensor(boxes))
    instances.scores = torch.ones(len(boxes))
    instances.pred_classes = torch.tensor([a["category_id"] for a in annotations])
    masks = [torch.from_numpy(mask_util.decode(a["segmentation"])) for a in annotations]
    instances.pred_masks = torch.stack(masks).bool()
    return {"instances": instances}


def test_ground_truth_is_found_though_an_id_is_0(dataset):
    records = dataset(renumber)
    evaluator = InstanceEvaluator("copied_coco", ("bbox", "segm"))
    evaluator.reset()
    for record in records:
        evaluator.check_ground_truth(record)
        evaluator.process([record], [as_predicted(record)])
    results = evaluator.evaluate()
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize(
    "change, error",
    [
        ({"iscrowd": 1}, None),
        ({"bbox": [5, 5, 0, 9], "segmentation": [[1, 1, 1.1, 1, 1.1, 1.1]]}, None),
        ({"segmentation": [[]]}, Exception),
        ({"segmentation": [[1, 2, 3, 4]]}, TypeError),
        ({"segmentation": None}, TypeError),
        ({"area": 1e11}, InputError),
        ({"id": "one"}, ValueError),
    ],
)
def test_annotations_that_cannot_be_found(dataset, change, error):
    record = dataset(lambda annotations: annotations[0].update(change))[0]
    evaluator = InstanceEvaluator("copied_coco", ("bbox", "segm"))
    if error is None:
        evaluator.check_ground_truth(record)
    else:
        with pytest.raises(error):
            evaluator.check_ground_truth(record)
