"""What COCO's annotations say of a mask."""

from typing import Any

import numpy as np
from pycocotools import mask as mask_utils


def describe_mask(mask: np.ndarray) -> dict[str, Any]:
    """COCO's area, box (x, y, width, height) and crowd flag of an (H, W) bool mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    box = [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]
    return {"area": int(np.count_nonzero(mask)), "bbox": box, "iscrowd": 0}


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed RLE of an (H, W) bool mask, with counts as JSON can hold them."""
    rle = mask_utils.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
