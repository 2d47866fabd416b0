"""A trained model, ready to predict for image files one at a time."""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode

from ..data.images import build_mapper
from ..engine import load_model
from ..modeling import augmented


def build_predictor(cfg: CfgNode) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Build a config's model with its ``MODEL.WEIGHTS``, all of which must be there.

    Unlike Detectron2's DefaultPredictor it refuses weights of another model, and it prepares
    images with the very mapper of the evaluation. With ``TEST.AUG.ENABLED`` it augments them.

    Returns:
        A function from a dataset dict with "file_name", "height" and "width" (the size of the
        output) to the model's output for that image.

    Raises:
        InputError: see :func:`~lda_aqu.engine.load_model`.
    """
    model = load_model(cfg)
    if cfg.TEST.AUG.ENABLED:
        model = augmented(cfg, model)
    mapper = build_mapper(cfg)

    @torch.no_grad()
    def predict(dataset_dict: dict[str, Any]) -> dict[str, Any]:
        image = {key: dataset_dict[key] for key in ("file_name", "height", "width")}
        return model([mapper(image)])[0]

    return predict
