"""Drawing predictions, the ground truth beside them, and what upsamplers do on the way."""

from .coco_results import CocoResults
from .datasets import class_metadata, load_dataset
from .drawing import draw_to_folder, prepare_output
from .image_files import find_images
from .layout import contact_sheet
from .predictions import draw_ground_truth, draw_predictions
from .predictor import build_predictor
from .sampling import check_pixels, edge_pixels, record_upsamplers
from .sampling_figures import draw_maps, draw_offsets, draw_points

__all__ = [
    "CocoResults",
    "build_predictor",
    "check_pixels",
    "class_metadata",
    "contact_sheet",
    "draw_ground_truth",
    "draw_maps",
    "draw_offsets",
    "draw_points",
    "draw_predictions",
    "draw_to_folder",
    "edge_pixels",
    "find_images",
    "load_dataset",
    "prepare_output",
    "record_upsamplers",
]
