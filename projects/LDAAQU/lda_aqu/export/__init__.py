"""Models leave Python: as files of standard operators, checked against PyTorch."""

from .exported_model import ExportedModel
from .exporting import check_exportable, export_model
from .formats import FORMATS

__all__ = ["FORMATS", "ExportedModel", "check_exportable", "export_model"]
