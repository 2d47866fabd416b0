"""Datasets. Importing this registers the built-in ones in Detectron2's catalogs."""

from . import builtin
from .coco_format import register_coco_format_datasets

__all__ = ["builtin", "register_coco_format_datasets"]
