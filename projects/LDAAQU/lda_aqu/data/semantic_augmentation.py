"""How images are varied while a semantic model trains."""

from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform


def build_semantic_augmentation(cfg: CfgNode) -> list[T.Augmentation | T.Transform]:
    """Detectron2's resize and flip, the crop between them, and a change of colours.

    Detectron2's own mapper crops before it resizes, so that the scale of a crop would be that of
    its size alone. Keys: ``INPUT.MIN_SIZE_TRAIN``, ``.MAX_SIZE_TRAIN``, ``.RANDOM_FLIP``,
    ``.CROP.*`` (with SINGLE_CATEGORY_MAX_AREA, the largest share of one class in a crop, in at
    most ten tries) and ``.COLOR_AUG_SSD``.
    """
    resize, *flips = detection_utils.build_augmentation(cfg, is_train=True)
    augmentations = [resize]
    if cfg.INPUT.CROP.ENABLED:
        augmentations.append(
            T.RandomCrop_CategoryAreaConstraint(
                cfg.INPUT.CROP.TYPE,
                cfg.INPUT.CROP.SIZE,
                cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA,
                cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            )
        )
    if cfg.INPUT.COLOR_AUG_SSD:
        augmentations.append(ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT))
    return augmentations + flips
