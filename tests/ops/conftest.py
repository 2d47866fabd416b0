from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lda_aqu.ops import cpp


@pytest.fixture(autouse=True)
def each_device(device) -> None:
    """Every test here runs on each device, but for those that are marked ``cpu``."""


@pytest.fixture
def compiled_kernels() -> None:
    """Skip where the C++ kernels cannot run."""
    if reason := cpp.unavailable(torch.device("cpu")):
        pytest.skip(reason)


@pytest.fixture(params=["generic", "avx2", "avx512"])
def instruction_set(request, compiled_kernels) -> Iterator[str]:
    """Kernels of each instruction set, where they can run."""
    before = cpp.instruction_set()
    try:
        cpp.use_instruction_set(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    cpp.use_instruction_set(before)


@pytest.fixture(scope="session")
def triton_cache(tmp_path_factory) -> Path:
    """The folder in which these tests keep what Triton compiles, empty at first."""
    return tmp_path_factory.mktemp("triton")


@pytest.fixture
def new_triton_cache(monkeypatch, triton_cache) -> None:
    """Triton takes nothing that it compiled before these tests."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(triton_cache))
