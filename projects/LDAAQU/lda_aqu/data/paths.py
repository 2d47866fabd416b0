"""Where datasets are."""

import os
from pathlib import Path


def datasets_root() -> Path:
    """``$DETECTRON2_DATASETS``, or ``datasets`` in the current folder, as in Detectron2."""
    return Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
