import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from lda_aqu import LDAAQU
from lda_aqu.errors import InputError
from lda_aqu.ops import BACKENDS, backends
from paths import ROOT

CPU = torch.device("cpu")


def test_the_cpu_runs_the_compiled_kernels():
    """Where there is a compiler, the installation must not have missed it silently."""
    if not (shutil.which("g++") or shutil.which("c++")):
        pytest.skip("there is no C++ compiler")
    assert backends.choose_backend("auto", CPU).name == "cpp"


OPERATORS = ("attention", "offset_network", "normalized_projection")


def test_the_backend_that_was_chosen_computes_every_operator(monkeypatch):
    called = []
    for name in OPERATORS:
        for module in {getattr(backend, name) for backend in BACKENDS.values()}:
            forward = module.forward
            monkeypatch.setattr(
                module,
                "forward",
                lambda *args, f=forward, m=module: called.append(m) or f(*args),
            )
    for backend in [b for b in BACKENDS.values() if not b.unavailable(CPU)]:
        LDAAQU(16, backend=backend.name)(torch.randn(1, 16, 4, 4))
        assert set(called) == {getattr(backend, name) for name in OPERATORS}
        assert len(called) == len(OPERATORS)
        called.clear()


def test_automatic_choice_is_logged_once_with_the_reason(monkeypatch, caplog):
    broken = replace(BACKENDS["cpp"], unavailable=lambda device: "no such file")
    monkeypatch.setitem(backends.BACKENDS, "cpp", broken)
    backends.choose_backend.cache_clear()
    try:
        with caplog.at_level(logging.INFO, "lda_aqu"):
            for _ in range(2):
                assert backends.choose_backend("auto", CPU).name == "plain"
        assert len(caplog.messages) == 1
        assert "plain PyTorch" in caplog.text and "not cpp: no such file" in caplog.text
        with pytest.raises(RuntimeError, match="backend 'cpp' cannot run on cpu: no such file"):
            backends.choose_backend("cpp", CPU)
    finally:
        backends.choose_backend.cache_clear()


def test_unknown_backends_raise():
    with pytest.raises(InputError, match="unknown backend 'cuda'; known: auto, "):
        LDAAQU(16, backend="cuda")


def test_the_command_lists_every_backend():
    run = subprocess.run(
        [sys.executable, "-m", "lda_aqu.ops"], capture_output=True, text=True, check=True
    )
    for name in BACKENDS:
        assert f"cpu   {name:7} " in run.stdout


def test_builds_without_a_compiler(tmp_path):
    """The installation goes on and says what is missing; it leaves no library behind."""
    run = subprocess.run(
        [
            *(sys.executable, "setup.py", "-v", "build"),
            *("--build-base", str(tmp_path / "build"), "--build-lib", str(tmp_path / "lib")),
        ],
        cwd=ROOT,
        env={**os.environ, "CC": "no-such-compiler", "CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert 'building extension "lda_aqu.ops._cpp" failed' in run.stdout + run.stderr
    assert (tmp_path / "lib/lda_aqu/ops/cpp/library.py").exists()
    assert not list((tmp_path / "lib/lda_aqu/ops").glob("_cpp*"))
