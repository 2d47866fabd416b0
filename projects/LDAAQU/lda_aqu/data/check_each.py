"""Checking many items in child processes, so that what dies there, as C libraries do, is named."""

import ctypes
import faulthandler
import logging
import math
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from typing import TypeVar

import torch
from tqdm import tqdm

from ..errors import InputError, one_line

logger = logging.getLogger(__name__)

T = TypeVar("T")

SECONDS = 30
"""How long to check what many datasets have too much of."""

_MEMORY = 8 * 2**30  # bytes that a child may allocate beyond what it inherits
_ITEMS_PER_CHILD = 16  # at least
_PERTURB = -6  # glibc's M_PERTURB
_DIE_WITH_PARENT = 1  # Linux's PR_SET_PDEATHSIG


def check_each(
    dataset: str,
    kind: str,
    items: Sequence[T],
    check: Callable[[T], object],
    name: Callable[[T], str],
    *,
    seconds: float = math.inf,
) -> None:
    """Call ``check`` for each item, in as many child processes as there are cores.

    An item is at fault if the check raises, or if the process dies of it: of a segmentation fault
    in a library, for instance, or of too much memory.

    Args:
        dataset: name of the dataset.
        kind: what the items are, in the plural, for messages.
        items: what to check.
        check: the check. What it returns or changes is lost.
        name: what an item is called in messages.
        seconds: after so many, the rest is left unchecked, which is logged. The order is random
            then, but the same each time.

    Raises:
        InputError: how many are at fault, and what is wrong with one of them.
    """
    order = list(range(len(items)))
    if seconds < math.inf:
        random.Random(0).shuffle(order)
    count = max(1, min(len(os.sched_getaffinity(0)), len(items) // _ITEMS_PER_CHILD))
    context = multiprocessing.get_context("fork")
    done = context.RawArray("q", count)  # the number of items that each child has behind it
    deadline = time.monotonic() + seconds

    def work(child: int, results: connection.Connection) -> None:
        _confine()
        faults, share = [], order[child::count]
        while done[child] < len(share) and time.monotonic() < deadline:
            index = share[done[child]]
            try:
                check(items[index])
            except Exception as error:
                faults.append((index, _message(error, name(items[index]))))
            done[child] += 1
        results.send((len(faults), faults[:1]))

    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    children = [
        context.Process(target=work, args=(child, sender), daemon=True)
        for child, (_, sender) in enumerate(pipes)
    ]
    try:
        for child in children:
            child.start()
        with tqdm(desc=kind.capitalize(), total=len(items), delay=1) as bar:
            while running := [child.sentinel for child in children if child.is_alive()]:
                connection.wait(running, timeout=0.2)
                bar.update(sum(done) - bar.n)
    finally:
        for child in children:
            child.kill()

    total, faults = 0, []
    for child, (process, (receiver, _)) in enumerate(zip(children, pipes, strict=True)):
        if process.exitcode == 0:
            number, first = receiver.recv()
        else:
            index = order[child::count][done[child]]
            code = process.exitcode
            cause = signal.strsignal(-code) if code < 0 else f"exit status {code}"
            number, first = 1, [(index, f"{name(items[index])}: what reads it dies ({cause})")]
        total += number
        faults += first
    if faults:
        raise InputError(
            f"dataset {dataset}: {total} of {len(items)} {kind} cannot be used, the first: "
            f"{min(faults)[1]}"
        )
    if sum(done) < len(items):
        logger.info("Dataset %s: checked %d of %d %s", dataset, sum(done), len(items), kind)


def _confine() -> None:
    """Prepare a child for what may be wrong with the items."""
    logging.disable()
    faulthandler.disable()
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    sys.stdout = sys.stderr = nowhere = open(os.devnull, "w")  # noqa: SIM115
    for stream in (1, 2):  # what libraries print while they work, or die
        os.dup2(nowhere.fileno(), stream)
    with open("/proc/self/statm") as file:
        inherited = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_AS, (inherited + _MEMORY, hard))
    libc = ctypes.CDLL(None)
    libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    # Memory that nobody has written is not zero by chance, but holds a pattern.
    if hasattr(libc, "mallopt"):
        libc.mallopt(_PERTURB, 0xA5)


def _message(error: Exception, name: str) -> str:
    text = str(error) if isinstance(error, InputError) else one_line(error)
    return text if name in text else f"{name}: {text}"
