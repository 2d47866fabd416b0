"""Configuring, checking and running a training or an evaluation."""

from .checkpoint import Checkpointer
from .command_line import add_model_options, model_config
from .data_checks import check_datasets, first_test_images
from .launch import find_processes, launch
from .run_checks import check_model, check_processes, check_solver, check_weights
from .setup import load_config
from .trained_model import check_trained_weights, load_model
from .trainer import Trainer
from .upsampler_checks import check_upsamplers_are_used

__all__ = [
    "Checkpointer",
    "Trainer",
    "add_model_options",
    "check_datasets",
    "check_model",
    "check_processes",
    "check_solver",
    "check_trained_weights",
    "check_upsamplers_are_used",
    "check_weights",
    "find_processes",
    "first_test_images",
    "launch",
    "load_config",
    "load_model",
    "model_config",
]
