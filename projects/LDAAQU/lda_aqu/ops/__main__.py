"""``python -m lda_aqu.ops``: which backends can run here, and why the others cannot."""

import torch

from . import cpp
from .backends import BACKENDS, choose_backend


def main() -> None:
    """Print a line for each backend on each kind of device that is here."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    for device in map(torch.device, devices):
        for backend in BACKENDS.values():
            reason = backend.unavailable(device)
            print(f"{device.type:5} {backend.name:7} {'no: ' + reason if reason else 'available'}")
        print(f'{device.type:5} "auto" is {choose_backend("auto", device).name}')
    if not cpp.unavailable(torch.device("cpu")):
        print(f"cpp: compiled for several instruction sets, uses {cpp.instruction_set()}")


if __name__ == "__main__":
    main()
