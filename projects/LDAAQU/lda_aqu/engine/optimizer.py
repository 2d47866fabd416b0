"""The optimizer that ``SOLVER.OPTIMIZER`` names."""

import torch
from detectron2 import solver
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

OPTIMIZERS = ("SGD", "ADAMW")
"""The values of ``SOLVER.OPTIMIZER``."""


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Detectron2's SGD, or AdamW (Loshchilov and Hutter, ICLR 2019).

    ``SOLVER.BASE_LR``, ``WEIGHT_DECAY`` with ``_NORM`` and ``_BIAS``, ``BIAS_LR_FACTOR`` and
    ``CLIP_GRADIENTS`` mean the same for both. AdamW has PyTorch's betas and no ``MOMENTUM``.
    """
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return solver.build_optimizer(cfg, model)
    parameters = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    optimizer = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return optimizer(parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
