"""Evaluators, and how one is chosen for a dataset."""

from .build import build_evaluator, primary_metric

__all__ = ["build_evaluator", "primary_metric"]
