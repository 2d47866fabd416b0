"""Triton's kernels: under its interpreter, and compiled for GPUs that are not here."""

import os
import subprocess
import sys
from pathlib import Path

from paths import ROOT


def test_under_the_interpreter():
    """Correctness: the tests of triton_interpreted.py, where TRITON_INTERPRET is set."""
    tests = Path(__file__).with_name("triton_interpreted.py")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(tests)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
