"""The operators: what they compute, and how. Know nothing of modules, networks or Detectron2."""

from .backends import BACKEND_CHOICES, BACKENDS, check_backend
from .local_deformable_attention import local_deformable_attention
from .normalized_projection import project_normalized
from .offset_network import predict_offsets, resize_and_predict_offsets
from .reassembly import reassemble, similarity

__all__ = [
    "BACKENDS",
    "BACKEND_CHOICES",
    "check_backend",
    "local_deformable_attention",
    "predict_offsets",
    "project_normalized",
    "reassemble",
    "resize_and_predict_offsets",
    "similarity",
]
