import random

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from lda_aqu.data.semantic_augmentation import build_semantic_augmentation
from lda_aqu.engine import load_config


def config(*opts: object) -> CfgNode:
    values = {"MIN_SIZE_TRAIN": (50,), "RANDOM_FLIP": "none", "CROP.ENABLED": True}
    values |= {"CROP.TYPE": "absolute", "CROP.SIZE": [40, 40]}
    flat = [part for key, value in values.items() for part in (f"INPUT.{key}", value)]
    return load_config("", [*flat, *opts])


def augment(
    cfg: CfgNode, image: np.ndarray, labels: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    random.seed(seed)
    np.random.seed(seed)
    augmented = T.AugInput(image.copy(), sem_seg=labels.copy())
    T.AugmentationList(build_semantic_augmentation(cfg))(augmented)
    return augmented.image, augmented.sem_seg


def ramp() -> tuple[np.ndarray, np.ndarray]:
    """(100, 160, 3) uint8, brighter by 1 from column to column; labels are its tens."""
    columns = np.tile(np.arange(160, dtype=np.uint8), (100, 1))
    return np.stack([columns] * 3, axis=-1), columns // 10


def test_crops_have_their_size_at_the_resized_scale():
    image, labels = augment(config(), *ramp(), seed=0)
    assert image.shape == (40, 40, 3) and labels.shape == (40, 40)
    values = image[0, :, 0].astype(int)
    assert values[-1] - values[0] == pytest.approx(2 * 39, abs=1)  # half the size, twice as steep
    assert np.abs(labels[0] - values / 10 + 0.5).max() <= 0.75  # the labels are the same crop's


def test_smaller_images_are_not_cropped():
    image, labels = augment(config("INPUT.MIN_SIZE_TRAIN", (20,)), *ramp(), seed=0)
    assert image.shape == (20, 32, 3) and labels.shape == (20, 32)


def test_no_class_fills_a_crop():
    image, _ = ramp()
    labels = np.tile(np.arange(160) >= 80, (100, 1)).astype(np.uint8)
    labels[:30] = 255  # does not count
    largest = {}
    for limit in (0.75, 1.0):
        opts = ["INPUT.MIN_SIZE_TRAIN", (100,), "INPUT.CROP.SIZE", [100, 80]]
        cfg = config(*opts, "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", limit)
        crops = [augment(cfg, image, labels, seed)[1] for seed in range(20)]
        largest[limit] = max(max((c == 0).sum(), (c == 1).sum()) / (c != 255).sum() for c in crops)
    assert largest[0.75] <= 0.75 and largest[1.0] > 0.9


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_colours_change_and_labels_do_not(image_format):
    opts = ["INPUT.CROP.ENABLED", False, "INPUT.MIN_SIZE_TRAIN", (100,)]
    cfg = config(*opts, "INPUT.COLOR_AUG_SSD", True, "INPUT.FORMAT", image_format)
    image, labels = ramp()
    changed, same = zip(*(augment(cfg, image, labels, seed) for seed in range(4)), strict=True)
    assert any((c != image).any() for c in changed)
    assert all((s == labels).all() for s in same)
