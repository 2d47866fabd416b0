import json

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_coco_panoptic_separated
from detectron2.structures import Boxes, Instances
from lda_aqu.errors import InputError
from lda_aqu.evaluation import build_evaluator, primary_metric
from PIL import Image

HEIGHT, WIDTH = 64, 96  # as in tiny_coco
NAMES = ("tiny", "tiny_separated", "tiny_stuffonly", "tiny_other", "never_registered")


@pytest.fixture
def datasets(tiny_coco, tmp_path):
    """One image of tiny_coco, all of it sky, as datasets of all types: yields its path."""
    content = json.loads((tiny_coco / "annotations.json").read_text())
    content["images"] = [{**content["images"][0], "file_name": "0.jpg"}]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == 0]
    (tmp_path / "instances.json").write_text(json.dumps(content))

    categories = [{**c, "isthing": 1} for c in content["categories"]]
    categories.append({"id": 9, "name": "sky", "isthing": 0})
    segment = {"id": 1, "category_id": 9, "iscrowd": 0, "area": HEIGHT * WIDTH}
    annotation = {"image_id": 0, "file_name": "0.png", "segments_info": [segment]}
    content |= {"annotations": [annotation], "categories": categories}
    (tmp_path / "panoptic.json").write_text(json.dumps(content))

    for file, pixels in (
        ("images/0.jpg", np.zeros((HEIGHT, WIDTH, 3))),
        ("panoptic/0.png", np.full((HEIGHT, WIDTH, 3), (1, 0, 0))),
        ("stuff/0.png", np.ones((HEIGHT, WIDTH))),
    ):
        (tmp_path / file).parent.mkdir()
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / file)
    metadata = {
        "thing_classes": ["box", "disc"],
        "thing_dataset_id_to_contiguous_id": {3: 0, 7: 1},
        "stuff_classes": ["things", "sky"],
        "stuff_dataset_id_to_contiguous_id": {0: 0, 9: 1},
    }
    images, instances = str(tmp_path / "images"), str(tmp_path / "instances.json")
    register_coco_instances("tiny", {}, instances, images)
    register_coco_panoptic_separated(
        "tiny",
        metadata,
        images,
        str(tmp_path / "panoptic"),
        str(tmp_path / "panoptic.json"),
        str(tmp_path / "stuff"),
        instances,
    )
    MetadataCatalog.get("tiny_other").set(evaluator_type="lvis")
    yield f"{images}/0.jpg"
    for name in NAMES:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def config(architecture: str, *opts: object):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", architecture, *opts])
    cfg.DATASETS.TEST = ("tiny",)
    return cfg


def results(cfg, dataset: str, file_name: str) -> dict[str, dict[str, float]]:
    """What the evaluator of a dataset makes of a model that predicts one box, and sky."""
    return predict(build_evaluator(cfg, dataset), file_name)


def predict(evaluator, file_name: str) -> dict[str, dict[str, float]]:
    evaluator.reset()
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 20.0, 20.0]]))
    instances.scores, instances.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    instances.pred_masks = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    sky = [{"id": 4, "isthing": False, "category_id": 1}]
    output = {
        "instances": instances,
        "sem_seg": torch.stack([torch.zeros(HEIGHT, WIDTH), torch.ones(HEIGHT, WIDTH)]),
        "panoptic_seg": (torch.full((HEIGHT, WIDTH), 4, dtype=torch.int32), sky),
    }
    evaluator.process([{"image_id": 0, "file_name": file_name}], [output])
    return evaluator.evaluate()


@pytest.mark.parametrize(
    ("architecture", "masks", "dataset", "tasks"),
    [
        ("GeneralizedRCNN", True, "tiny", {"bbox", "segm"}),
        ("GeneralizedRCNN", False, "tiny", {"bbox"}),
        ("GeneralizedRCNN", True, "tiny_separated", {"bbox", "segm"}),
        ("RetinaNet", False, "tiny_separated", {"bbox"}),
        ("SemanticSegmentor", False, "tiny_stuffonly", {"sem_seg"}),
        ("SemanticSegmentor", False, "tiny_separated", {"sem_seg"}),
        ("PanopticFPN", True, "tiny_separated", {"panoptic_seg", "bbox", "segm", "sem_seg"}),
        ("PanopticFPN", True, "tiny_stuffonly", {"sem_seg"}),
        ("PanopticFPN", True, "tiny", {"bbox", "segm"}),
    ],
)
def test_what_is_evaluated(architecture, masks, dataset, tasks, datasets, tmp_path):
    cfg = config(architecture, "MODEL.MASK_ON", masks, "OUTPUT_DIR", str(tmp_path))
    found = results(cfg, dataset, datasets)
    assert found.keys() == tasks
    if "sem_seg" in tasks:
        assert found["sem_seg"]["mIoU"] == 100
    if "panoptic_seg" in tasks:
        assert found["panoptic_seg"]["PQ"] == 100
    # The best checkpoint is chosen by a metric that there is.
    cfg.DATASETS.TEST = (dataset,)
    task, metric = primary_metric(cfg).split("/")
    assert metric in found[task]


def test_panoptic_dataset_without_semantic_labels(datasets, tmp_path):
    metadata = MetadataCatalog.pop("tiny_separated").as_dict()
    MetadataCatalog.get("tiny_separated").set(**metadata | {"sem_seg_root": None})
    cfg = config("PanopticFPN", "MODEL.MASK_ON", True, "OUTPUT_DIR", str(tmp_path))
    assert results(cfg, "tiny_separated", datasets).keys() == {"panoptic_seg", "bbox", "segm"}


def test_predictions_of_two_datasets_are_kept_apart(datasets, tmp_path):
    cfg = config("PanopticFPN", "MODEL.MASK_ON", True, "OUTPUT_DIR", str(tmp_path))
    cfg.DATASETS.TEST = ("tiny_separated", "tiny_stuffonly")
    for name in cfg.DATASETS.TEST:
        results(cfg, name, datasets)
    folder = tmp_path / "inference"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.json")}
    assert {
        "tiny_separated/panoptic_predictions.json",
        "tiny_separated/coco_instances_results.json",
        "tiny_separated/sem_seg_predictions.json",
        "tiny_stuffonly/sem_seg_predictions.json",
    } <= files


@pytest.mark.parametrize("dataset", ["tiny_other", "never_registered"])
def test_unknown_types_are_refused(dataset, datasets):
    with pytest.raises(InputError, match=r"'coco', 'sem_seg', 'coco_panoptic_seg'") as error:
        build_evaluator(config("PanopticFPN"), dataset)
    assert dataset in str(error.value)


@pytest.mark.parametrize(
    ("architecture", "dataset"),
    [
        ("SemanticSegmentor", "tiny"),
        ("GeneralizedRCNN", "tiny_stuffonly"),
        ("RetinaNet", "tiny_stuffonly"),
    ],
)
def test_a_model_that_the_dataset_has_no_labels_for_is_refused(architecture, dataset, datasets):
    with pytest.raises(InputError, match=rf"{dataset}.*MODEL.META_ARCHITECTURE {architecture}"):
        build_evaluator(config(architecture), dataset)


@pytest.mark.parametrize(
    ("architecture", "masks", "metric"),
    [
        ("PanopticFPN", True, "panoptic_seg/PQ"),
        ("SemanticSegmentor", False, "sem_seg/mIoU"),
        ("GeneralizedRCNN", True, "segm/AP"),
        ("GeneralizedRCNN", False, "bbox/AP"),
        ("RetinaNet", False, "bbox/AP"),
    ],
)
def test_primary_metric(architecture, masks, metric):
    cfg = config(architecture, "MODEL.MASK_ON", masks)
    cfg.DATASETS.TEST = ("one",)
    assert primary_metric(cfg) == metric
    cfg.DATASETS.TEST = ("one", "two")
    assert primary_metric(cfg) == f"one/{metric}"


@pytest.mark.parametrize(
    ("architecture", "gone"),
    [
        ("GeneralizedRCNN", "instances.json"),
        ("PanopticFPN", "panoptic.json"),
        ("SemanticSegmentor", "stuff"),
    ],
)
def test_files_that_are_gone_before_an_evaluation_are_named(architecture, gone, datasets, tmp_path):
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=rf"dataset tiny_separated: '.*{gone}' cannot be read"):
        build_evaluator(config(architecture), "tiny_separated")


@pytest.mark.parametrize("gone", ["panoptic/0.png", "stuff/0.png"])
def test_labels_that_are_gone_during_an_evaluation_are_named(gone, datasets, tmp_path):
    cfg = config("PanopticFPN", "MODEL.MASK_ON", True, "OUTPUT_DIR", str(tmp_path))
    evaluator = build_evaluator(cfg, "tiny_separated")
    (tmp_path / gone).unlink()
    with pytest.raises(InputError, match=rf"dataset tiny_separated cannot be evaluated: .*{gone}"):
        predict(evaluator, datasets)


@pytest.mark.parametrize("dataset", ["tiny", "tiny_stuffonly"])
def test_a_disk_that_is_full_of_predictions_is_an_error_of_one_line(dataset, datasets, tmp_path):
    """The predictions go to /dev/full, where every write fails."""
    folder = tmp_path / "inference"
    folder.mkdir()
    for name in (
        "instances_predictions.pth",
        "sem_seg_predictions.json",
        "panoptic_predictions.json",
    ):
        (folder / name).symlink_to("/dev/full")
    cfg = config("PanopticFPN", "MODEL.MASK_ON", True, "OUTPUT_DIR", str(tmp_path))
    with pytest.raises(
        InputError, match=rf"dataset {dataset} cannot be evaluated: .*No space left"
    ):
        results(cfg, dataset, datasets)
