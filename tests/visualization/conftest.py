from pathlib import Path

import lda_aqu.modeling  # noqa: F401  (registers the builders)
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from lda_aqu.engine import load_config


@pytest.fixture
def tiny_weights(tiny_config, tmp_path) -> Path:
    """Random weights of the model of ``tiny_config``."""
    torch.manual_seed(0)
    model = build_model(load_config(str(tiny_config), []))
    DetectionCheckpointer(model, str(tmp_path)).save("random")
    return tmp_path / "random.pth"
