import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lda_aqu.ops import BACKENDS

# In outputs: of the forward pass, with and without gradients, and of the backward pass. All the
# pixels that an upsampler reads would be 9 outputs (LDAAQU, A2U) or 25, their gradient as much.
BOUNDS = {
    "LDAAQU": (2.4, 4),
    "CARAFE": (2.6, 4),
    "SAPAB": (3.6, 5),
    "FADE": (3.2, 7.5),
    "FreqFusion": (6.5, 5.5),
    "A2U": (6, 9),
}
if BACKENDS["cpp"].unavailable(torch.device("cpu")):
    BOUNDS["LDAAQU"] = (6, 8)  # plain PyTorch, one point of the values at a time


@pytest.mark.cpu
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux gives it")
def test_what_is_read_is_never_in_memory_at_once():
    script = Path(__file__).with_name("peak_memory.py")
    # What is freed goes back to the system at once, or later peaks would be less than was taken.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, script, *BOUNDS]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    for name, (inference, forward, backward) in json.loads(run.stdout).items():
        largest_forward, largest_backward = BOUNDS[name]
        assert 1 <= inference < largest_forward and 1 <= forward < largest_forward, run.stdout
        assert backward < largest_backward, run.stdout
