"""LDA-AQU: adaptive query-guided upsampling via local deformable attention (ACM MM 2024).

This module and everything it imports need torch alone. What plugs into Detectron2 is in
``lda_aqu.modeling``, ``lda_aqu.data``, ``lda_aqu.evaluation`` and ``lda_aqu.engine``.
"""

from .config import add_lda_aqu_config
from .upsamplers import LDAAQU, UPSAMPLER_REGISTRY, build_upsampler, replace_upsampling

__all__ = [
    "LDAAQU",
    "UPSAMPLER_REGISTRY",
    "add_lda_aqu_config",
    "build_upsampler",
    "replace_upsampling",
]
