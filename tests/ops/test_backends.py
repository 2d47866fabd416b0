import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from lda_aqu import LDAAQU, build_upsampler
from lda_aqu.errors import InputError
from lda_aqu.ops import BACKENDS, backends, operator, reassemble
from lda_aqu.ops.backends import choose_implementation
from lda_aqu.upsamplers import GuidedUpsampler
from paths import ROOT
from torch.utils._pytree import tree_map_only

pytestmark = pytest.mark.cpu

CPU = torch.device("cpu")
X = torch.zeros(1, 16, 4, 4)


@pytest.fixture(autouse=True)
def forget_choices():
    """What was chosen, and logged, before a test and in it."""

    def forget() -> None:
        backends._candidates.cache_clear()
        backends._log.cache_clear()

    forget()
    yield
    forget()


def chosen(backend: str, file: str, function: str) -> str:
    """The backend that computes it on the CPU."""
    implementation = choose_implementation(backend, file, function, [X])
    return implementation.__module__.split(".")[-2]


def test_the_cpu_runs_the_compiled_kernels():
    """Where there is a compiler, the installation must not have missed it silently."""
    if not (shutil.which("g++") or shutil.which("c++")):
        pytest.skip("there is no C++ compiler")
    assert chosen("auto", "attention", "local_deformable_attention") == "cpp"


OPERATORS = {
    "projection": "project_normalized",
    "offset_network": "predict_offsets",
    "attention": "local_deformable_attention",
    "reassembly": "reassemble",
}


def called(monkeypatch, backend: str, run) -> list[tuple[str, str]]:
    """The backends and the files of the functions that compute, in their order."""
    calls = []

    def spy_on(name: str, file: str, function: str) -> None:
        module = BACKENDS[name].file(file)
        if module:
            original = getattr(module, function)
            spy = lambda *args: calls.append((name, file)) or original(*args)  # noqa: E731
            monkeypatch.setattr(module, function, spy)

    for file, function in OPERATORS.items():
        for name in {backend, "plain"}:
            spy_on(name, file, function)
    run()
    monkeypatch.undo()
    return calls


def test_the_backend_that_was_asked_for_computes_every_operator(monkeypatch, backend):
    calls = called(monkeypatch, backend, lambda: LDAAQU(16, backend=backend)(X))
    assert calls == [(backend, file) for file in ("projection", "offset_network", "attention")]


def test_plain_serves_where_a_backend_has_no_operator_and_says_so(monkeypatch, caplog):
    with caplog.at_level(logging.INFO, "lda_aqu"):
        weights = torch.zeros(1, 1, 9, 8, 8)
        calls = called(monkeypatch, "cpp", lambda: reassemble(X, weights, backend="cpp"))
    assert calls == [("plain", "reassembly")]
    assert caplog.messages == [
        "Reassembly on cpu: plain (plain PyTorch); not cpp: it does not compute this"
    ]


def test_plain_pytorch_computes_on_the_device_of_its_inputs(monkeypatch):
    """Not on the default one, which is the same in the other tests: here it is another."""
    calls = []

    def choose(backend: str, *call: object):
        calls.append((choose_implementation("plain", *call), call[-1]))
        return calls[-1][0]

    monkeypatch.setattr(operator, "choose_implementation", choose)
    for name in ("LDAAQU", "CARAFE", "SAPAB"):
        module = build_upsampler(name, 16)
        inputs = [X, torch.zeros(1, 16, 8, 8)][: 1 + isinstance(module, GuidedUpsampler)]
        module(*inputs).sum().backward()
    assert len({function for function, _ in calls}) == 9  # of reassembly 3, which are the gradients
    for function, inputs in calls:
        with torch.no_grad():
            results = function(*tree_map_only(torch.Tensor, lambda t: t.to("meta"), inputs))
        assert all(result.device.type == "meta" for result in results)


def test_a_file_that_cannot_compute_a_call(monkeypatch, caplog):
    """Automatically the next backend does; by name it raises."""
    file = BACKENDS["cpp"].file("attention")
    monkeypatch.setattr(file, "unavailable", lambda name, *_: f"{name}: too wide", raising=False)
    with caplog.at_level(logging.INFO, "lda_aqu"):
        assert chosen("auto", "attention", "local_deformable_attention") == "plain"
    assert "not cpp: local_deformable_attention: too wide" in caplog.text
    with pytest.raises(RuntimeError, match="backend 'cpp' cannot compute .*: too wide"):
        LDAAQU(16, backend="cpp")(X)


def test_automatic_choice_is_logged_once_for_each_operator_with_the_reason(monkeypatch, caplog):
    broken = replace(BACKENDS["cpp"], unavailable=lambda device: "no such file")
    monkeypatch.setitem(backends.BACKENDS, "cpp", broken)
    module = LDAAQU(16)
    with caplog.at_level(logging.INFO, "lda_aqu"):
        for _ in range(2):
            module(X)
    assert [message.split(" on ")[0] for message in caplog.messages] == [
        "Projection",
        "Offset network",
        "Attention",
    ]
    assert all("plain PyTorch" in m and "not cpp: no such file" in m for m in caplog.messages)
    with pytest.raises(RuntimeError, match="backend 'cpp' cannot run on cpu: no such file"):
        LDAAQU(16, backend="cpp")(X)


def test_the_environment_names_the_backend_in_the_place_of_auto(monkeypatch):
    monkeypatch.setenv("LDA_AQU_BACKEND", "plain")
    assert all(chosen("auto", *names) == "plain" for names in OPERATORS.items())
    if not BACKENDS["cpp"].unavailable(CPU):  # as it is asked for by name
        assert chosen("cpp", "attention", "local_deformable_attention") == "cpp"
    monkeypatch.setenv("LDA_AQU_BACKEND", "triton")
    with pytest.raises(RuntimeError, match="backend 'triton' cannot run on cpu"):
        build_upsampler("CARAFE", 16)(X)
    monkeypatch.setenv("LDA_AQU_BACKEND", "cuda")
    with pytest.raises(InputError, match="^LDA_AQU_BACKEND: unknown backend 'cuda'; known: auto"):
        LDAAQU(16)(X)


def test_unknown_backends_raise():
    with pytest.raises(InputError, match="unknown backend 'cuda'; known: auto, "):
        LDAAQU(16, backend="cuda")
    with pytest.raises(InputError, match="unknown backend 'cuda'; known: auto, "):
        reassemble(X, torch.zeros(1, 1, 9, 8, 8), backend="cuda")


def test_the_command_lists_every_backend_and_operator():
    run = subprocess.run(
        [sys.executable, "-m", "lda_aqu.ops"], capture_output=True, text=True, check=True
    )
    for name in BACKENDS:
        assert f"cpu   {name:7} " in run.stdout
    assert "cpu   reassembly: plain" in run.stdout


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
