import logging
import runpy
import sys

import pytest
import torch
from paths import ROOT


@pytest.fixture
def run(monkeypatch):
    """Run a tool as a command; return its exit status."""
    # Loading a config logs; tools set threads.
    monkeypatch.setattr(logging.getLogger("lda_aqu"), "handlers", [])
    threads = torch.get_num_threads()

    def run(tool: str, *args: object) -> int:
        path = str(ROOT / "tools" / tool)
        monkeypatch.setattr(sys, "argv", [path, *map(str, args)])
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(path, run_name="__main__")
        return exit_info.value.code

    yield run
    torch.set_num_threads(threads)
