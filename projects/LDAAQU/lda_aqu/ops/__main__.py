"""``python -m lda_aqu.ops``: which backends can run here, and which computes each operator."""

import torch

from . import cpp
from .backends import describe


def main() -> None:
    """Print what :func:`describe` says of each kind of device that is here."""
    for device in ["cpu"] + (["cuda"] if torch.cuda.is_available() else []):
        print("\n".join(describe(torch.device(device))))
    if not cpp.unavailable(torch.device("cpu")):
        print(f"cpp: compiled for several instruction sets, uses {cpp.instruction_set()}")


if __name__ == "__main__":
    main()
