import os
import struct

import numpy as np
import pytest
from lda_aqu.data.label_files import image_size, read_label
from lda_aqu.errors import InputError
from PIL import ExifTags, Image


@pytest.fixture
def label_file(tmp_path):
    """Write a label file, 6 x 4 pixels, with the values 0, 1, 2 and 255; or change it."""

    def write(values=(0, 1, 2, 255), size=(6, 4), mode="L"):
        pixels = np.resize(np.array(values, np.uint8), size[::-1])
        path = tmp_path / "label.png"
        Image.fromarray(pixels).convert(mode).save(path)
        return path, pixels

    return write


def test_label_is_read_unchanged(label_file):
    path, pixels = label_file()
    label = read_label(path, (6, 4), range(3), 255)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, pixels)


@pytest.mark.parametrize(
    "classes, ignored, message",
    [
        (range(2), 255, r"label\.png' has the values 2; allowed are 0 to 1, and 255 for what is"),
        (range(1), None, r"has the values 1, 2, 255; allowed are 0 to 0$"),
    ],
)
def test_other_values_are_named(label_file, classes, ignored, message):
    with pytest.raises(InputError, match=message):
        read_label(label_file()[0], (6, 4), classes, ignored)


def test_many_values_are_cut_short(label_file):
    with pytest.raises(InputError, match=r"values 1, 2, 3, 4, 5, 6, 7, 8, \.\.\.; allowed"):
        read_label(label_file(range(24))[0], (6, 4), range(1), None)


def test_size(label_file):
    with pytest.raises(InputError, match="has 6 x 4 pixels, its image 4 x 6"):
        read_label(label_file()[0], (4, 6), range(3), 255)


@pytest.mark.parametrize("mode", ["P", "RGB", "1", "I;16"])
def test_modes_of_which_detectron2_would_read_the_brightness(label_file, mode):
    with pytest.raises(InputError, match=rf"label\.png' has the mode {mode}; it must be L"):
        read_label(label_file(mode=mode)[0], (6, 4), range(256), None)


@pytest.mark.parametrize("content", [None, b"", b"no image"])
def test_unreadable(tmp_path, content):
    path = tmp_path / "0.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"label file '.*0\.png' cannot be read"):
        read_label(path, (6, 4), range(3), 255)
    with pytest.raises(InputError, match=r"image file '.*0\.png' cannot be read"):
        image_size(path)


def test_label_cut_short(label_file):
    path, _ = label_file(np.random.default_rng(0).integers(0, 3, 4000), size=(80, 50))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"label\.png' cannot be read"):
        read_label(path, (80, 50), range(3), 255)


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match=r"pipe\.png' is no regular file"):
        image_size(tmp_path / "pipe.png")
    with pytest.raises(InputError, match=r"label file .*pipe\.png' is no regular file"):
        read_label(tmp_path / "pipe.png", (6, 4), range(3), None)


# An orientation in the type of text, which Pillow does not write.
TEXT_EXIF = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHI4sI", 1, 274, 2, 2, b"6\0\0\0", 0)


@pytest.mark.parametrize(
    "orientation, size", [(None, (6, 4)), (3, (6, 4)), (6, (4, 6)), ("6", (6, 4))]
)
def test_image_size_is_that_of_the_image_as_detectron2_reads_it(tmp_path, orientation, size):
    from detectron2.data.detection_utils import read_image

    path = tmp_path / "image.jpg"
    exif = Image.Exif()
    if isinstance(orientation, int):
        exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (6, 4)).save(path, exif=TEXT_EXIF if orientation == "6" else exif)
    with Image.open(path) as image:
        assert image.getexif().get(ExifTags.Base.Orientation) == orientation
    assert image_size(path) == size
    assert read_image(str(path), "RGB").shape[1::-1] == size
