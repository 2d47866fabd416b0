import os
from pathlib import Path

import numpy as np
import pytest
from lda_aqu.data.images import read_image_file
from lda_aqu.data.label_files import UnreadableImageError
from lda_aqu.errors import InputError
from lda_aqu.visualization import find_images
from lda_aqu.visualization.image_files import picture_names
from PIL import Image


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("b.png", "a.JPG", "c.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_files_keep_their_order_and_folders_are_sorted_and_nothing_comes_twice(folder):
    given = [str(folder / "c.jpg"), str(folder), str(folder / "notes.txt")]
    assert [Path(file).name for file in find_images(given)] == [
        "c.jpg",
        "a.JPG",
        "b.png",
        "notes.txt",
    ]


def test_many_files_of_a_folder_are_sorted(tmp_path):
    names = [f"{index * 7 % 20:02}.png" for index in range(20)]
    for name in names:
        (tmp_path / name).touch()
    assert [Path(file).name for file in find_images([str(tmp_path)])] == sorted(names)


def test_relative_paths_become_absolute(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert find_images(["./b.png", "empty/../b.png"]) == [str(folder / "b.png")]


@pytest.mark.parametrize(("name", "message"), [("gone.png", "gone.png"), ("empty", "no image in")])
def test_a_path_without_images_is_named(folder, name, message):
    with pytest.raises(InputError, match=message):
        find_images([str(folder / "b.png"), str(folder / name)])


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["/d/x.jpg", "/d/y.tif"], ["x.png", "y.png"]),
        (["/d/one/x.jpg", "/d/two/x.jpg"], ["one/x.png", "two/x.png"]),
        (["/d/x.jpg", "/d/x.tif"], ["x.jpg.png", "x.tif.png"]),
        (["/d/x.jpg", "/d/x.tif", "/d/x.jpg.tif"], ["x.jpg.png", "x.tif.png", "x.jpg.tif.png"]),
        (["/d/contact_sheet.jpg"], ["contact_sheet.jpg.png"]),
        (["/d/x.tar.jpg", "/e/f/x"], ["d/x.tar.png", "e/f/x.png"]),
    ],
)
def test_pictures_of_different_files_have_different_names(files, names):
    assert [str(name) for name in picture_names(files)] == [
        name.replace("/", os.sep) for name in names
    ]


def test_the_exif_orientation_is_followed(tmp_path):
    upright = np.zeros((30, 20, 3), dtype=np.uint8)
    upright[:10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to show
    stored = Image.fromarray(np.rot90(upright))
    stored.save(tmp_path / "turned.png", exif=exif)
    assert (read_image_file(str(tmp_path / "turned.png"), "RGB") == upright).all()


def _damage(content: bytes, kind: str) -> bytes:
    """Damage a PNG of several data chunks, or put another file in its place."""
    if kind == "cut short":
        return content[: len(content) // 2]
    if kind == "broken chunk":
        before, after = content.rsplit(b"IDAT", 1)
        return before + b"\0DAT" + after
    return {
        "no image": b"not an image",
        "bad header": b"P6 ten ten 255\n",
        "huge": b"P6 65535 65535 255\n",
    }[kind]


@pytest.mark.parametrize("kind", ["cut short", "broken chunk", "no image", "bad header", "huge"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, kind):
    file = tmp_path / "bad.png"
    Image.effect_noise((512, 512), 50).save(file)
    file.write_bytes(_damage(file.read_bytes(), kind))
    with pytest.raises(UnreadableImageError, match=r"bad\.png"):
        read_image_file(str(file), "RGB")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"gone\.png"):
        read_image_file(str(tmp_path / "gone.png"), "RGB")
