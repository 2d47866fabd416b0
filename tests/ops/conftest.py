from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lda_aqu.ops import cpp

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def each_device(device) -> None:
    """Every test here runs on each device, but for those that are marked ``cpu``."""


@pytest.fixture
def instruction_set(request) -> Iterator[str]:
    """Kernels of the instruction set that the test is parametrized with, where they can run."""
    reason = cpp.unavailable(CPU)
    if reason:
        pytest.skip(reason)
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
