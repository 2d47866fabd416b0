import logging
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import lda_aqu.modeling  # noqa: F401  (registers the builders)
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from lda_aqu.engine import load_config
from paths import ROOT


@pytest.fixture
def tiny_weights(tiny_config, tmp_path) -> Path:
    """Random weights of the model of ``tiny_config``."""
    torch.manual_seed(0)
    model = build_model(load_config(str(tiny_config), []))
    DetectionCheckpointer(model, str(tmp_path)).save("random")
    return tmp_path / "random.pth"


@pytest.fixture
def run_tool(monkeypatch) -> Callable[..., int]:
    """Run a script in tools/ as a command, (name, *arguments); return its exit status."""
    # A tool sets up logging for a process of its own.
    logger = logging.getLogger("lda_aqu")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", logger.propagate)

    def run(name: str, *args: object) -> int:
        tool = str(ROOT / "tools" / name)
        monkeypatch.setattr(sys, "argv", [tool, *map(str, args)])
        try:
            runpy.run_path(tool, run_name="__main__")
        except SystemExit as end:
            return end.code
        return 0

    return run
