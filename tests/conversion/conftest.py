import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from lda_aqu.conversion import weight_shapes
from lda_aqu.engine import load_config
from paths import ROOT
from published_checkpoint import published_shapes, random_weights
from torch import Tensor, nn


@pytest.fixture(scope="session")
def published_cfg() -> CfgNode:
    """The config that the published weights belong to."""
    name = "faster_rcnn_R_50_FPN_1x_lda_aqu_published_weights.yaml"
    return load_config(str(ROOT / "configs/COCO-Detection" / name), ["MODEL.DEVICE", "cpu"])


@pytest.fixture(scope="session")
def shapes(published_cfg) -> dict[str, torch.Size]:
    """Those of its model's state dict."""
    return weight_shapes(published_cfg)


@pytest.fixture(scope="session")
def model(published_cfg) -> nn.Module:
    return build_model(published_cfg).eval()


@pytest.fixture(scope="session")
def published() -> dict[str, Tensor]:
    """All tensors of a published checkpoint of 80 classes."""
    return random_weights(published_shapes())
