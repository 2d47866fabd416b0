import random

import cv2
import numpy as np
import pytest
import torch
from lda_aqu.data.images import ImageMapper, read_image_file
from lda_aqu.engine import load_config
from lda_aqu.errors import InputError
from PIL import ExifTags, Image

BYTES = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
DEEP = BYTES * np.uint16(257)  # of which [0, 65535] becomes BYTES
FULL = (0, 65535)


@pytest.mark.parametrize("file", ["deep.png", "deep.tif", "deep.pgm"])
@pytest.mark.parametrize("image_format", ["RGB", "BGR", "L", "YUV-BT.601"])
def test_grey_of_16_bits_is_read_as_its_twin_of_8_bits(tmp_path, file, image_format):
    cv2.imwrite(str(tmp_path / file), DEEP)
    Image.fromarray(BYTES).save(tmp_path / "twin.png")
    deep, twin = (
        read_image_file(str(tmp_path / name), image_format, FULL) for name in (file, "twin.png")
    )
    assert deep.dtype == twin.dtype
    assert np.array_equal(deep, twin)


@pytest.mark.parametrize("values", [np.uint16, ">u2", np.int32, np.float32])
def test_values_beyond_the_range_are_clipped(tmp_path, values):
    pixels = np.array([[0, 1000, 1499, 1500, 2000, 2999, 3000, 65535]], values)
    Image.fromarray(pixels).save(tmp_path / "deep.tif")
    (read,) = read_image_file(str(tmp_path / "deep.tif"), "L", (1000, 3000))[..., 0]
    # 0.1275 a step
    assert read.tolist() == [0, 0, 64, 64, 128, 255, 255, 255]


def test_what_is_no_number_is_black(tmp_path):
    pixels = np.array([[np.nan, -np.inf, np.inf, 0.5]], np.float32)
    Image.fromarray(pixels).save(tmp_path / "deep.tif")
    (read,) = read_image_file(str(tmp_path / "deep.tif"), "L", (-1, 1))[..., 0]
    assert read.tolist() == [0, 0, 255, 191]


def test_the_exif_orientation_is_followed(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(np.rot90(DEEP).copy()).save(tmp_path / "deep.png", exif=exif)
    assert np.array_equal(read_image_file(str(tmp_path / "deep.png"), "L", FULL)[..., 0], BYTES)


@pytest.mark.parametrize("kind", ["I;16", "I", "F"])
def test_grey_of_more_than_8_bits_needs_a_range(tmp_path, kind):
    path = str(tmp_path / "image.tiff")
    Image.fromarray(np.full((4, 6), 3000, np.int32)).convert(kind).save(path)
    message = rf"image\.tiff' has values of .* 8 bits \(mode {kind}\), .* set INPUT\.VALUE_RANGE"
    with pytest.raises(InputError, match=message):
        read_image_file(path, "RGB")
    with pytest.raises(InputError, match=message):
        ImageMapper(load_config("", []), is_train=True)({"file_name": path})


@pytest.mark.parametrize("file", ["deep.png", "deep.tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_colour_of_16_bits_is_refused(tmp_path, file, channels):
    """Pillow would drop the lower 8."""
    cv2.imwrite(str(tmp_path / file), np.stack([DEEP] * channels, axis=-1))
    for value_range in ((), FULL):
        with pytest.raises(InputError, match=r"deep\..*' is in colour with 16 bits a channel"):
            read_image_file(str(tmp_path / file), "RGB", value_range)


@pytest.mark.parametrize("is_train", [True, False])
def test_a_model_gets_the_same_of_both_twins(tmp_path, is_train):
    """Augmentation, boxes and semantic labels included; an image of 8 bits is not scaled."""
    cfg = load_config("", ["INPUT.VALUE_RANGE", str(FULL), "INPUT.MIN_SIZE_TRAIN", "(50, 80)"])
    mapper = ImageMapper(cfg, is_train=is_train)
    Image.fromarray(DEEP).save(tmp_path / "deep.png")
    Image.fromarray(BYTES).save(tmp_path / "twin.png")
    Image.fromarray(BYTES % 5).save(tmp_path / "labels.png")
    inputs = []
    for name in ("deep", "twin"):
        random.seed(1)
        np.random.seed(1)
        annotation = {"bbox": [5, 6, 30, 20], "bbox_mode": 0, "category_id": 2}
        record = {"width": 60, "height": 40, "annotations": [annotation]}
        record |= {"sem_seg_file_name": str(tmp_path / "labels.png")}
        inputs.append(mapper(record | {"file_name": str(tmp_path / f"{name}.png")}))
    deep, twin = inputs
    assert deep["image"].dtype == torch.uint8 and deep["image"].float().std() > 10
    assert torch.equal(deep["image"], twin["image"])
    assert torch.equal(deep["sem_seg"], twin["sem_seg"]) and deep["sem_seg"].max() == 4
    if is_train:
        boxes = [image["instances"].gt_boxes.tensor for image in inputs]
        assert torch.equal(*boxes)
