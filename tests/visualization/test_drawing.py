import errno
import logging
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances
from lda_aqu.errors import InputError
from lda_aqu.visualization import draw_predictions, draw_to_folder, prepare_output
from PIL import Image

HEIGHT, WIDTH = 40, 60
METADATA = Metadata(thing_classes=["cat", "dog"])


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three grey images: a.png, b.png and c.png."""
    (tmp_path / "images").mkdir()
    for index, name in enumerate("abc"):
        gray = Image.new("RGB", (WIDTH, HEIGHT), (100 + index,) * 3)
        gray.save(tmp_path / "images" / f"{name}.png")
    return tmp_path / "images"


def records(folder: Path, **more) -> list[dict]:
    return [{"file_name": str(file), **more} for file in sorted(folder.iterdir())]


def one_box(dataset_dict: dict) -> dict[str, Instances]:
    instances = Instances((dataset_dict["height"], dataset_dict["width"]))
    instances.pred_boxes = Boxes(torch.tensor([[10.0, 5, 30, 25]]))
    instances.scores = torch.tensor([0.9])
    instances.pred_classes = torch.tensor([0])
    return {"instances": instances}


def pictures(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def expected(gray: int) -> np.ndarray:
    """The picture of the prediction."""
    image = np.full((HEIGHT, WIDTH, 3), gray, dtype=np.uint8)
    return draw_predictions(image, one_box({"height": HEIGHT, "width": WIDTH}), METADATA)


def test_a_prediction_without_ground_truth_is_saved_alone(folder, tmp_path):
    assert draw_to_folder(records(folder)[1:2], one_box, METADATA, tmp_path) == []
    with Image.open(tmp_path / "b.png") as saved:
        assert (np.asarray(saved) == expected(101)).all()


def test_ground_truth_stands_left_of_the_prediction(folder, tmp_path):
    output = tmp_path / "output"
    images = records(folder, height=HEIGHT, width=WIDTH, annotations=[])
    prepare_output(output, [image["file_name"] for image in images])
    assert draw_to_folder(images, one_box, METADATA, output) == []
    assert pictures(output) == {"a.png", "b.png", "c.png", "contact_sheet.png"}
    with Image.open(output / "c.png") as saved:
        picture = np.asarray(saved)
    prediction = expected(102)
    height, width = prediction.shape[:2]
    assert (picture[-height:, -width:] == prediction).all()
    assert (picture[-height:, :width] == 102).all()
    assert picture.shape[0] > height  # the captions


def test_the_others_are_drawn_where_some_cannot_be_read(folder, tmp_path, caplog):
    (folder / "a.png").write_bytes(b"not an image")
    images = records(folder)
    images[2].update(height=HEIGHT, width=WIDTH + 1)
    with caplog.at_level(logging.ERROR):
        failed = draw_to_folder(images, one_box, METADATA, tmp_path)
    assert failed == [str(folder / "a.png"), str(folder / "c.png")]
    assert {"b.png", "contact_sheet.png"} <= pictures(tmp_path)
    for file, message in zip(failed, caplog.messages, strict=True):
        assert file in message


def test_nothing_drawn_gives_no_contact_sheet(tmp_path):
    missing = str(tmp_path / "gone.png")
    assert draw_to_folder([{"file_name": missing}], one_box, METADATA, tmp_path) == [missing]
    assert pictures(tmp_path) == set()


def test_images_of_the_same_name_have_each_a_picture(tmp_path):
    files = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        files.append(str(tmp_path / folder / "same.png"))
        Image.new("RGB", (60, 40)).save(files[-1])
    output = tmp_path / "output"
    prepare_output(output, files)
    assert draw_to_folder([{"file_name": f} for f in files], one_box, METADATA, output) == []
    assert pictures(output) == {"one/same.png", "two/same.png", "contact_sheet.png"}


def test_an_output_folder_that_cannot_be_used_is_named(folder):
    file = folder / "a.png"
    for output in (file, file / "below"):
        with pytest.raises(InputError, match=r"--output .*a\.png"):
            prepare_output(output, [str(file)])


def test_an_output_folder_that_cannot_be_written_to_is_named(folder, monkeypatch):
    # As when the file system is read-only; permissions do not hold back a superuser.
    def refuse(dir: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match=r"--output .*Read-only file system"):
        prepare_output(folder / "drawn", [str(folder / "a.png")])


def test_an_input_is_never_replaced(folder):
    files = [str(folder / "a.png"), str(folder / "b.png")]
    with pytest.raises(InputError, match=r"would replace .*a\.png"):
        prepare_output(folder, files)
    prepare_output(folder / "drawn", files)
