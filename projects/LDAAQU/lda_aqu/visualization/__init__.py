"""Drawing predictions, and the ground truth beside them."""

from .coco_results import CocoResults
from .datasets import class_metadata, load_dataset
from .drawing import draw_to_folder, prepare_output
from .image_files import find_images
from .layout import contact_sheet
from .predictions import draw_ground_truth, draw_predictions
from .predictor import build_predictor

__all__ = [
    "CocoResults",
    "build_predictor",
    "class_metadata",
    "contact_sheet",
    "draw_ground_truth",
    "draw_predictions",
    "draw_to_folder",
    "find_images",
    "load_dataset",
    "prepare_output",
]
