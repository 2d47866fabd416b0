"""Checkpoints of the published implementation, which is built on mmdetection 2.x, to and from ours.

The converted weights compute what they did there with the conventions of
configs/COCO-Detection/faster_rcnn_R_50_FPN_1x_lda_aqu_published_weights.yaml. What differs still,
as Detectron2 has no key for it:

- Images are resized by Pillow, in mmdetection by OpenCV, which does not smooth when it shrinks;
  a side that ends in half a pixel may be rounded to the other (mmcv/image/geometric.py).
- mmdetection bounds log-size deltas below, too (mmdet/core/bbox/coder/delta_xywh_bbox_coder.py):
  there no box becomes more than 62.5 times smaller than the one it is made from.
- The levels of RoIs are rounded with 1e-6, here 1e-8, added to their relative size
  (mmdet/models/roi_heads/roi_extractors/single_level_roi_extractor.py).
- Proposals are ordered by logit, in mmdetection by probability (mmdet/models/dense_heads/
  rpn_head.py): those whose probabilities are equal in float32 may change places.
- Detections are suppressed before, in mmdetection after their boxes are scaled to the size of the
  original image (mmdet/models/roi_heads/bbox_heads/bbox_head.py).
- Training: here BatchNorm is frozen; there its scale and shift were trained from the second
  stage of the ResNet on.
"""

from .convert import WEIGHTS_KEYS, Row, convert_checkpoint, convert_weights, weight_shapes

__all__ = ["WEIGHTS_KEYS", "Row", "convert_checkpoint", "convert_weights", "weight_shapes"]
