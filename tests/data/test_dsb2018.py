"""dsb2018 is made from the download as the one of the published figures was."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.datasets import load_coco_json
from lda_aqu.data.dsb2018 import prepare_dsb2018
from lda_aqu.errors import InputError
from PIL import Image
from pycocotools import mask as mask_util


def add(root: Path, name: str, masks: list[np.ndarray], size: int = 256) -> None:
    for kind in ("images", "masks"):
        (root / name / kind).mkdir(parents=True)
    Image.new("RGBA", (size, size), (10, 20, 30, 255)).save(root / name / "images" / f"{name}.png")
    for number, mask in enumerate(masks):
        Image.fromarray(255 * mask.astype(np.uint8)).save(root / name / f"masks/{number}.png")


def rectangle(y: int, x: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((256, 256), bool)
    mask[y : y + height, x : x + width] = True
    return mask


def test_every_fourth_image_is_for_validation(tmp_path):
    source, output = tmp_path / "stage1_train", tmp_path / "dsb2018"
    for number in range(5):
        add(source, f"{number}" * 64, [rectangle(3, 5, 7, 11), rectangle(20, 30, 1, 2)])
    add(source, "0" * 63 + "1", [], size=260)  # not counted
    assert prepare_dsb2018(source, output) == {"train": 3, "val": 2}
    names = {}
    for split in ("train", "val"):
        records = load_coco_json(str(output / f"annotations/{split}.json"), str(output / "images"))
        names[split] = [Path(record["file_name"]).name for record in records]
        for record in records:
            assert Image.open(record["file_name"]).mode == "RGB"
            first, second = record["annotations"]
            assert first["bbox"] == [5, 3, 11, 7] and second["bbox"] == [30, 20, 2, 1]
            np.testing.assert_array_equal(
                mask_util.decode(first["segmentation"]), rectangle(3, 5, 7, 11)
            )
    assert names == {
        "train": [f"{n}" * 16 + ".png" for n in "123"],
        "val": [f"{n}" * 16 + ".png" for n in "04"],
    }


@pytest.mark.parametrize(
    "masks, message",
    [
        ([np.zeros((256, 256), bool)], "0.png'.*is empty, or not 256 x 256"),
        ([np.ones((256, 255), bool)], "0.png'.*is empty, or not 256 x 256"),
        (None, "has no images of 256 x 256"),
    ],
)
def test_what_is_not_the_download_is_named(tmp_path, masks, message):
    if masks:
        add(tmp_path / "source", "a" * 64, masks)
    with pytest.raises(InputError, match=message):
        prepare_dsb2018(tmp_path / "source", tmp_path / "output")
    assert not (tmp_path / "output/annotations/train.json").exists()


def test_the_split_is_that_of_the_published_figures(shared_data):
    names = {
        split: [
            image["file_name"]
            for image in json.loads(
                (shared_data / f"dsb2018/annotations/{split}.json").read_text()
            )["images"]
        ]
        for split in ("train", "val")
    }
    assert sorted(names["train"] + names["val"])[::4] == names["val"]
