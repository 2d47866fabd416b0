"""The operators: what they compute, and how. Know nothing of modules, networks or Detectron2."""

from .attention import local_deformable_attention
from .backends import BACKEND_CHOICES, BACKENDS, check_backend
from .bilinear_sampling import sample_bilinear
from .offset_network import predict_offsets
from .projection import project_normalized
from .reassembly import reassemble, similarity
from .standard import standard_operators

__all__ = [
    "BACKENDS",
    "BACKEND_CHOICES",
    "check_backend",
    "local_deformable_attention",
    "predict_offsets",
    "project_normalized",
    "reassemble",
    "sample_bilinear",
    "similarity",
    "standard_operators",
]
