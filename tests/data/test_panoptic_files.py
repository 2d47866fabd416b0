import numpy as np
import pytest
from lda_aqu.data.panoptic_files import id2rgb, read_segment_ids, rgb2id
from lda_aqu.errors import InputError
from PIL import Image

IDS = np.array([[0, 1, 255], [256, 65536, 2**24 - 1]])


def test_ids_are_colours_and_back():
    colors = id2rgb(IDS)
    assert colors.dtype == np.uint8
    assert colors.tolist() == [
        [[0, 0, 0], [1, 0, 0], [255, 0, 0]],
        [[0, 1, 0], [0, 0, 1], [255, 255, 255]],
    ]
    np.testing.assert_array_equal(rgb2id(colors), IDS)


def test_ids_that_are_not_listed_are_named(tmp_path):
    path = tmp_path / "panoptic.png"
    Image.fromarray(id2rgb(IDS)).save(path)
    listed = [1, 255, 256, 65536, 2**24 - 1]
    np.testing.assert_array_equal(read_segment_ids(path, (3, 2), listed), IDS)
    with pytest.raises(InputError, match=r"panoptic\.png' has the segment ids 1, 65536, which its"):
        read_segment_ids(path, (3, 2), [255, 256, 2**24 - 1])
