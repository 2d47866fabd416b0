"""The operator: what it computes, and how. Knows nothing of modules, networks or Detectron2."""

from .local_deformable_attention import local_deformable_attention
from .reassembly import reassemble, similarity

__all__ = ["local_deformable_attention", "reassemble", "similarity"]
