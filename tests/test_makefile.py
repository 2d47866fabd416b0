"""Which variables of make act when, by what it would run, and what ``make clean`` leaves."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make")

TORCH = "'torch>=2.6' torchvision --index-url https://example.org/#whl"
NOTHING = "make: Nothing to be done for 'install'."


@pytest.fixture
def checkout(tmp_path) -> Path:
    """Where `make install PYTHON=python3.99` was run."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("setup.py", "pyproject.toml", ".venv/bin/python"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch(0o755)
    (tmp_path / ".venv/.installed").write_text("PYTHON=python3.99\nTORCH=\nDETECTRON2=\n")
    return tmp_path


def make(checkout: Path, *arguments: str) -> list[str]:
    """The lines that it prints; nothing of the environment is a variable of the Makefile."""
    run = ["make", *arguments]
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    return subprocess.check_output(run, cwd=checkout, env=env, text=True).splitlines()


@pytest.mark.parametrize("given", [(), ("PYTHON=python3.99",), ("TORCH=", "DETECTRON2=")])
def test_what_was_set_before_holds(checkout, given):
    assert make(checkout, "-n", "install", *given) == [NOTHING]


@pytest.mark.parametrize(
    "given, line",
    [
        ("PYTHON=python3.98", "python3.98 -m venv .venv"),
        ("PYTHON=", "python3 -m venv .venv"),
        (f"TORCH={TORCH}", f"install -q {TORCH}"),
        ("DETECTRON2=../detectron2", "'../detectron2'"),
    ],
)
def test_another_value_makes_the_environment_anew(checkout, given, line):
    lines = make(checkout, "-n", "install", given)
    assert "rm -rf .venv" in lines and any(line in run for run in lines)
    subprocess.run(lines[-1], shell=True, cwd=checkout, check=True)  # what is left when it is done
    assert make(checkout, "-n", "install", given) == make(checkout, "-n", "install") == [NOTHING]


def test_a_change_of_the_project_keeps_the_environment(checkout):
    installed = checkout / ".venv/.installed"
    installed.write_text(f"PYTHON=\nTORCH={TORCH}\nDETECTRON2=\n")
    os.utime(installed, (0, 0))
    lines = make(checkout, "-n", "install")
    assert "rm -rf .venv" not in lines and any(f"install -q {TORCH}" in run for run in lines)


def test_clean(checkout):
    kept = {path for path in checkout.rglob("*") if path.is_file() and ".venv" not in path.parts}
    ops = checkout / "projects/LDAAQU/lda_aqu/ops"
    kept |= {ops / "csrc/dispatch.cpp", checkout / "datasets/a.png", checkout / "tests/a.py"}
    kept |= {checkout / "tools/a.py"}
    made = {ops / "_cpp.so", checkout / "projects/LDAAQU/lda_aqu.egg-info/PKG-INFO"}
    made |= {checkout / f"{name}/a" for name in ("build", ".pytest_cache", ".ruff_cache")}
    made |= {checkout / "tests/__pycache__/a.pyc", ops / "__pycache__/a.pyc"}
    for path in kept | made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    make(checkout, "clean")
    assert {path for path in checkout.rglob("*") if path.is_file()} == kept
