"""The Triton kernels compile with other versions of Triton than the one that is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.cpu]


@pytest.mark.parametrize("version", ["3.5.1", "3.6.0", "3.7.1", "3.9.0"])
def test_compiles_with(version, tmp_path):
    """Those of the versions of PyTorch from 2.9 on, and a newer one."""
    requirement = f"triton=={version}"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path)]
    installed = subprocess.run([*pip, requirement], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"{requirement} cannot be installed: {installed.stderr}")
    folder = Path(__file__).parent
    files = [str(folder / name) for name in ("test_triton.py", "test_triton_maps.py")]
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "compiles", *files],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
