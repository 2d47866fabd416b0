"""Evaluators, and how they are chosen for a dataset."""

from .build import build_evaluator, primary_metric
from .feature_change import relative_feature_change
from .instances import InstanceEvaluator
from .panoptic import PanopticEvaluator
from .sampling_statistics import SamplingStatistics, sampling_statistics
from .sem_seg import SemanticEvaluator

__all__ = [
    "InstanceEvaluator",
    "PanopticEvaluator",
    "SamplingStatistics",
    "SemanticEvaluator",
    "build_evaluator",
    "primary_metric",
    "relative_feature_change",
    "sampling_statistics",
]
