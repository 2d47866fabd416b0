"""Evaluators, and how they are chosen for a dataset."""

from .build import build_evaluator, primary_metric
from .feature_change import relative_feature_change
from .instances import InstanceEvaluator
from .panoptic import PanopticEvaluator
from .sem_seg import SemanticEvaluator

__all__ = [
    "InstanceEvaluator",
    "PanopticEvaluator",
    "SemanticEvaluator",
    "build_evaluator",
    "primary_metric",
    "relative_feature_change",
]
