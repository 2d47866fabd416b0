"""Configuring, checking and running a training or an evaluation."""

from .checkpoint import Checkpointer
from .checks import (
    check_datasets,
    check_model,
    check_output,
    check_processes,
    check_solver,
    check_weights,
)
from .launch import find_processes, launch
from .setup import load_config
from .trainer import Trainer

__all__ = [
    "Checkpointer",
    "Trainer",
    "check_datasets",
    "check_model",
    "check_output",
    "check_processes",
    "check_solver",
    "check_weights",
    "find_processes",
    "launch",
    "load_config",
]
