import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, BoxMode, Instances
from lda_aqu.data.label_files import UnreadableImageError
from lda_aqu.errors import InputError
from lda_aqu.visualization import draw_ground_truth, draw_predictions
from lda_aqu.visualization.predictions import MIN_SIDE, OPACITY
from PIL import Image

HEIGHT, WIDTH = 40, 60
SCALE = 9  # ceil(MIN_SIDE / HEIGHT)
GRAY = 120
RED, BLUE = [250, 10, 10], [10, 10, 250]
CAT, DOG = 0, 1


@pytest.fixture
def image() -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), GRAY, dtype=np.uint8)


@pytest.fixture
def metadata() -> Metadata:
    return Metadata(
        name="two_classes",
        thing_classes=["cat", "dog"],
        thing_colors=[RED, BLUE],
        stuff_classes=["things", "sky", "sea"],
        stuff_colors=[[0, 0, 0], [10, 250, 10], [250, 250, 10]],
    )


def ring() -> np.ndarray:
    """A square with a square hole."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[5:25, 10:30] = True
    mask[11:19, 16:24] = False
    return mask


def annotation(category: int, **more) -> dict:
    """The box of the ring, as Detectron2's COCO loader gives it."""
    box = {"bbox": [10, 5, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": category}
    return {**box, "iscrowd": 0, **more}


def instances(scores, classes, boxes=None, masks=None) -> dict[str, Instances]:
    boxes = boxes or [[10, 5, 30, 25]] * len(scores)
    result = Instances((HEIGHT, WIDTH))
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    result.scores = torch.tensor(scores)
    result.pred_classes = torch.tensor(classes)
    if masks is not None:
        result.pred_masks = torch.from_numpy(np.stack(masks))
    return {"instances": result}


def pixel(picture: np.ndarray, y: int, x: int) -> list[int]:
    """The colour in the middle of one pixel of the image."""
    return picture[y * SCALE + SCALE // 2, x * SCALE + SCALE // 2].tolist()


def blend(color: list[int], share: float = OPACITY) -> list[float]:
    return [(1 - share) * GRAY + share * channel for channel in color]


def test_small_images_are_enlarged_and_large_ones_are_not(metadata):
    for height, width, scale in (
        (40, 60, 9),
        (160, 160, 3),
        (MIN_SIDE, 500, 1),
        (361, 361, 1),
        (1, 5000, 1),
    ):
        image = np.full((height, width, 3), GRAY, dtype=np.uint8)
        picture = draw_predictions(image, instances([], []), metadata)
        assert picture.shape == (scale * height, scale * width, 3)
        assert (picture == GRAY).all()


def test_a_mask_is_filled_in_its_class_colour_and_its_hole_is_left_open(image, metadata):
    picture = draw_predictions(image, instances([0.9], [1], masks=[ring()]), metadata)
    assert pixel(picture, 15, 13) == pytest.approx(blend(BLUE), abs=1)
    assert pixel(picture, 15, 20) == [GRAY] * 3
    assert pixel(picture, 32, 50) == [GRAY] * 3
    for outer_or_inner_edge in ((5, 20), (10, 20)):
        assert pixel(picture, *outer_or_inner_edge)[2] > blend(BLUE)[2] + 5
    assert (image == GRAY).all()


def test_without_class_colours_instances_of_a_class_differ(image, metadata):
    masks = np.zeros((2, HEIGHT, WIDTH), dtype=bool)
    masks[0, 5:20, 10:20] = masks[1, 5:20, 30:40] = True
    boxes = [[10, 5, 20, 20], [30, 5, 40, 20]]
    del metadata.thing_colors
    predictions = instances([0.9, 0.9], [0, 0], boxes, masks)
    picture = draw_predictions(image, predictions, metadata)
    assert pixel(picture, 12, 15) != pixel(picture, 12, 35)
    assert pixel(picture, 12, 15) != [GRAY] * 3 != pixel(picture, 12, 35)
    assert (picture == draw_predictions(image, predictions, metadata)).all()


def test_instances_below_the_threshold_are_left_out(image, metadata):
    boxes = [[10, 5, 20, 15], [30, 5, 40, 15]]
    both = instances([0.7, 0.5], [0, 0], boxes)
    first = instances([0.7], [0], boxes[:1])
    assert (
        draw_predictions(image, both, metadata, 0.51)
        == draw_predictions(image, first, metadata, 0.51)
    ).all()
    assert (
        draw_predictions(image, both, metadata, 0.5)
        != draw_predictions(image, first, metadata, 0.5)
    ).any()
    assert (draw_predictions(image, both, metadata, 1.0) == GRAY).all()


def test_the_class_is_written_and_with_one_class_the_score_alone(image, metadata):
    def labels(classes: list[str] | None) -> np.ndarray:
        names = Metadata(thing_classes=classes or [])
        return draw_predictions(image, instances([0.9], [0]), names)

    cat, dog, number, alone = map(labels, (["cat", "x"], ["dog", "x"], None, ["cat"]))
    assert (cat != dog).any()
    assert (cat != number).any()
    assert (alone == labels(["dog"])).all()
    dark = [(picture < 60).all(axis=2).sum() for picture in (alone, cat)]
    assert 0 < dark[0] < dark[1]  # the label's background


def test_a_class_that_the_dataset_does_not_have_is_named(image, metadata):
    with pytest.raises(InputError, match=r"class 2 .*'two_classes' has only 2"):
        draw_predictions(image, instances([0.9], [2]), metadata)


def test_a_semantic_prediction_looks_like_its_ground_truth(image, metadata, tmp_path):
    labels = np.full((HEIGHT, WIDTH), 1, dtype=np.uint8)
    labels[:, 30:] = 2
    labels[:10] = 255
    Image.fromarray(labels).save(tmp_path / "labels.png")
    truth = draw_ground_truth(
        image, {"sem_seg_file_name": str(tmp_path / "labels.png")}, metadata, "sem_seg"
    )
    assert pixel(truth, 35, 10) == pytest.approx(blend(metadata.stuff_colors[1]), abs=2)
    assert pixel(truth, 35, 50) == pytest.approx(blend(metadata.stuff_colors[2]), abs=2)
    assert pixel(truth, 5, 10) == [GRAY] * 3

    scores = torch.zeros(3, HEIGHT, WIDTH)
    scores[1, :, :30] = scores[2, :, 30:] = 1
    prediction = draw_predictions(image, {"sem_seg": scores}, metadata)
    for x in (10, 50):
        assert pixel(prediction, 35, x) == pixel(truth, 35, x)
    assert (prediction != GRAY).any(axis=2).all()


def test_a_line_of_one_pixel_is_drawn_in_its_class_colour(image, metadata):
    labels = torch.ones(HEIGHT, WIDTH, dtype=torch.int64)
    labels[:, 50] = 2
    scores = torch.nn.functional.one_hot(labels).permute(2, 0, 1)
    picture = draw_predictions(image, {"sem_seg": scores}, metadata)
    line, beside = pixel(picture, 3, 50), pixel(picture, 3, 54)
    assert line[0] > 180 > beside[0]  # red is in the line's colour, and not in the other's
    assert line[2] < GRAY


def test_a_panoptic_prediction_looks_like_its_ground_truth(image, metadata, tmp_path):
    segment_ids = np.full((HEIGHT, WIDTH), 300)
    segment_ids[ring()] = 70000
    segments = [
        {"id": 300, "category_id": 2, "isthing": False},
        {"id": 70000, "category_id": 0, "isthing": True},
    ]
    rgb = np.stack([segment_ids >> shift & 255 for shift in (0, 8, 16)], axis=2)
    Image.fromarray(rgb.astype(np.uint8)).save(tmp_path / "panoptic.png")
    labels = {"pan_seg_file_name": str(tmp_path / "panoptic.png"), "segments_info": segments}
    truth = draw_ground_truth(image, labels, metadata, "panoptic_seg")
    panoptic = (torch.from_numpy(segment_ids), segments)
    prediction = draw_predictions(image, {"panoptic_seg": panoptic, "sem_seg": None}, metadata)
    assert (prediction == truth).all()
    assert pixel(truth, 15, 13) == pytest.approx(blend(RED), abs=1)
    assert pixel(truth, 15, 20) == pytest.approx(blend(metadata.stuff_colors[2]), abs=2)


def test_separated_panoptic_labels_leave_the_things_to_the_annotations(image, metadata, tmp_path):
    stuff = np.where(ring(), 0, 1).astype(np.uint8)
    Image.fromarray(stuff).save(tmp_path / "stuff.png")
    rle = mask_util.encode(np.asfortranarray(ring().astype(np.uint8)))
    labels = {
        "sem_seg_file_name": str(tmp_path / "stuff.png"),
        "annotations": [annotation(DOG, segmentation=rle)],
    }
    truth = draw_ground_truth(image, labels, metadata, "panoptic_seg")
    assert pixel(truth, 15, 13) == pytest.approx(blend(BLUE), abs=1)
    assert pixel(truth, 35, 50) == pytest.approx(blend(metadata.stuff_colors[1]), abs=2)


def test_annotations_with_and_without_masks_are_drawn_together(image, metadata):
    def truth(*annotations: dict) -> np.ndarray:
        labels = {"annotations": list(annotations)}
        return draw_ground_truth(image, labels, metadata, "instances")

    rle = mask_util.encode(np.asfortranarray(ring().astype(np.uint8)))
    square = [[10, 5, 30, 5, 30, 25, 10, 25]]
    cases = {
        "RLE": (truth(annotation(CAT), annotation(DOG, segmentation=rle)), [GRAY] * 3),
        "polygon": (truth(annotation(CAT), annotation(DOG, segmentation=square)), blend(BLUE)),
    }
    for name, (picture, centre) in cases.items():
        assert pixel(picture, 15, 13) == pytest.approx(blend(BLUE), abs=1), name
        assert pixel(picture, 15, 20) == pytest.approx(centre, abs=1), name

    box = truth(annotation(CAT))
    assert pixel(box, 15, 13) == [GRAY] * 3
    assert (box != GRAY).any()
    assert (box != truth(annotation(CAT, iscrowd=1))).any()
    assert (truth() == GRAY).all()


@pytest.mark.parametrize("kind", ["panoptic_seg", "instances", "sem_seg"])
def test_no_ground_truth_of_that_kind_gives_none(image, metadata, kind):
    assert draw_ground_truth(image, {"file_name": "x.png"}, metadata, kind) is None


def test_a_label_file_of_another_size_is_named(image, metadata, tmp_path):
    Image.new("L", (WIDTH, HEIGHT + 1)).save(tmp_path / "labels.png")
    with pytest.raises(UnreadableImageError, match=r"labels\.png"):
        draw_ground_truth(
            image, {"sem_seg_file_name": str(tmp_path / "labels.png")}, metadata, "sem_seg"
        )


def test_segments_without_names_are_an_input_error(image):
    with pytest.raises(InputError, match="'nameless' has no stuff_classes"):
        draw_predictions(
            image, {"sem_seg": torch.zeros(2, HEIGHT, WIDTH)}, Metadata(name="nameless")
        )
