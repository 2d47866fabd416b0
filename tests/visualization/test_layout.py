import numpy as np
import pytest
from lda_aqu.visualization import contact_sheet
from lda_aqu.visualization.layout import CELL_SIZE, GAP, MAX_CELLS, captioned, side_by_side
from PIL import Image


def plain(color: tuple[int, int, int], size: tuple[int, int] = (100, 80)) -> Image.Image:
    return Image.new("RGB", size, color)


def test_a_caption_is_written_above_an_unchanged_picture():
    picture = plain((200, 0, 0))
    one, other = np.asarray(captioned(picture, "one")), np.asarray(captioned(picture, "other"))
    band = one.shape[0] - 80
    assert (one[band:] == np.asarray(picture)).all()
    assert (one[:band] != other[:band]).any()
    assert one[:band].max() > 200  # bright letters
    large = captioned(plain((0, 0, 0), (100, 3000)), "large")
    assert large.height - 3000 > band


def test_pictures_stand_side_by_side():
    row = np.asarray(side_by_side([plain((200, 0, 0)), plain((0, 200, 0))]))
    assert row.shape == (80, 200 + GAP, 3)
    assert (row[:, :100] == (200, 0, 0)).all()
    assert (row[:, -100:] == (0, 200, 0)).all()


@pytest.mark.parametrize("count", [1, 3, 16, 20])
def test_the_sheet_shows_each_of_the_first_pictures_once(tmp_path, count):
    colors = [(50 + 10 * index, 200, 7) for index in range(count)]
    files = [tmp_path / f"{index}.png" for index in range(count)]
    for file, color in zip(files, colors, strict=True):
        plain(color).save(file)
    sheet = np.asarray(contact_sheet(files, [file.name for file in files]))
    for index, color in enumerate(colors):
        pixels = (sheet == color).all(axis=2).sum()
        assert pixels == (100 * 80 if index < MAX_CELLS else 0)


def test_sixteen_wide_pictures_make_a_sheet_that_is_not_a_strip(tmp_path):
    plain((1, 2, 3), (400, 100)).save(tmp_path / "wide.png")
    sheet = contact_sheet([tmp_path / "wide.png"] * 16, ["wide"] * 16)
    assert 0.5 < sheet.width / sheet.height < 2


def test_large_pictures_are_shrunk_with_their_proportions(tmp_path):
    plain((200, 0, 0), (4000, 1000)).save(tmp_path / "large.png")
    sheet = np.asarray(contact_sheet([tmp_path / "large.png"], ["large"]))
    assert sheet.shape[1] == CELL_SIZE[0]
    assert (sheet == (200, 0, 0)).all(axis=2).sum() == CELL_SIZE[0] * CELL_SIZE[0] // 4
