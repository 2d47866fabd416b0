"""Checking many items in child processes, so that what dies there, as C libraries do, is named."""

import ctypes
import math
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from typing import TypeVar

import torch
from tqdm import tqdm

from ..errors import InputError

T = TypeVar("T")

# Of a child: what it may allocate beyond what it inherits, before it fails by itself.
_MEMORY = 8 * 2**30
_ITEMS_PER_CHILD = 16  # at least, where there are fewer items than would keep every core busy
_PERTURB = -6  # glibc's M_PERTURB


def check_each(
    kind: str,
    items: Sequence[T],
    check: Callable[[T], object],
    name: Callable[[T], str],
    *,
    seconds: float = math.inf,
) -> int:
    """Call ``check`` for each item, in as many child processes as there are cores.

    An item is at fault if the check raises, or if the process dies of it: of a segmentation fault
    in a library, or of more memory than it may have.

    Args:
        kind: what the items are, in the plural, for messages.
        items: what to check; a child has a copy of them.
        check: the check. What it returns or changes is lost.
        name: what an item is called in messages; an :class:`InputError` names it by itself.
        seconds: after so many, the rest is left unchecked. The order is random then, but the same
            each time.

    Returns:
        How many were checked.

    Raises:
        InputError: how many are at fault, and what is wrong with one of them.
    """
    order = list(range(len(items)))
    if seconds < math.inf:
        random.Random(0).shuffle(order)
    count = max(1, min(len(os.sched_getaffinity(0)), len(items) // _ITEMS_PER_CHILD))
    context = multiprocessing.get_context("fork")
    done = context.RawArray("q", count)  # of each child, the number of items that are behind it
    deadline = time.monotonic() + seconds

    def work(child: int, results: connection.Connection) -> None:
        _confine()
        faults, share = [], order[child::count]
        while done[child] < len(share) and time.monotonic() < deadline:
            index = share[done[child]]
            try:
                check(items[index])
            except Exception as error:
                faults.append((index, _message(error)))
            done[child] += 1
        results.send((len(faults), faults[:1]))

    children = []
    try:
        for child in range(count):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(child, sender), daemon=True)
            process.start()
            sender.close()
            children.append((process, receiver))
        with tqdm(desc=kind.capitalize(), total=len(items), unit="", delay=1) as bar:
            while running := [process.sentinel for process, _ in children if process.is_alive()]:
                connection.wait(running, timeout=0.2)
                bar.update(sum(done) - bar.n)
    finally:
        for process, _ in children:
            process.kill()
            process.join()

    total, faults = 0, []
    for child, (process, receiver) in enumerate(children):
        if process.exitcode == 0:
            number, first = receiver.recv()
        else:
            index = order[child::count][done[child]]
            cause = signal.strsignal(-process.exitcode) if process.exitcode < 0 else "out of memory"
            number, first = 1, [(index, f": the process that reads it dies ({cause})")]
        total += number
        faults += first
    if faults:
        index, message = min(faults)
        named = message if not message.startswith(":") else name(items[index]) + message
        raise InputError(f"{total} of {len(items)} {kind} cannot be used, the first: {named}")
    return sum(done)


def _confine() -> None:
    """Prepare a child for what may be wrong with the items."""
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    for stream in (1, 2):  # what libraries print while they work, or die
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    with open("/proc/self/statm") as file:
        inherited = int(file.read().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    allowed = inherited + _MEMORY
    resource.setrlimit(
        resource.RLIMIT_AS,
        (allowed if most == resource.RLIM_INFINITY else min(allowed, most), most),
    )
    # Memory that nobody has written is not zero by chance, but holds a pattern.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_PERTURB, 0xA5)


def _message(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    text = " ".join(str(error).split())[:300]
    return f": {type(error).__name__}: {text}"
