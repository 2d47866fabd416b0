"""Running one function in all processes: on GPUs or CPUs, started here or by torchrun."""

import ctypes
import logging
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

import torch
from detectron2 import engine
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import distributed, multiprocessing
from torch.multiprocessing.spawn import ProcessException, ProcessExitedException

from ..errors import MISFITS, InputError, as_input_error, mistake_in

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # of Linux's prctl

TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""What torchrun tells each process that it starts."""


class Processes(NamedTuple):
    """How many processes take part, and which of them this one is or will start."""

    total: int
    """On all machines."""
    per_machine: int
    rank: int
    """Of this process; before it starts others, of the first of them."""
    local_rank: int
    """The same among those of this machine."""
    by_torchrun: bool


def find_processes(args: Namespace) -> Processes:
    """The processes that torchrun has started, or those that the command line asks for.

    Args:
        args: of Detectron2's argument parser.

    Raises:
        InputError: torchrun's variables are no numbers, or do not fit each other.
    """
    if os.environ.keys() >= set(TORCHRUN_VARIABLES):
        values = [os.environ[variable] for variable in TORCHRUN_VARIABLES]
        numbers = [int(value) if value.isdecimal() else -1 for value in values]
        rank, total, local_rank, per_machine = numbers
        if not (0 <= local_rank <= rank < total and local_rank < per_machine <= total):
            found = ", ".join(map("=".join, zip(TORCHRUN_VARIABLES, values, strict=True)))
            raise InputError(f"torchrun's variables do not fit each other: {found}")
        return Processes(total, per_machine, rank, local_rank, by_torchrun=True)
    return Processes(
        total=args.num_gpus * args.num_machines,
        per_machine=args.num_gpus,
        rank=args.machine_rank * args.num_gpus,
        local_rank=0,
        by_torchrun=False,
    )


def launch(run: Callable[[CfgNode, Namespace], Any], cfg: CfgNode, args: Namespace) -> None:
    """Call ``run(cfg, args)`` in every process, connected as ``detectron2.utils.comm`` expects.

    Processes on GPUs communicate by NCCL, those on CPUs (``MODEL.DEVICE`` cpu) by Gloo. SIGTERM is
    passed on to the processes that are started here.

    Args:
        run: a function of a module, so that it can be sent to other processes.
        cfg: the run's config.
        args: of Detectron2's argument parser.

    Raises:
        InputError: the first that a process raised. The others have been ended.
        SystemExit: a process ended with a status, or by a signal, which becomes the command's.
    """
    processes = find_processes(args)
    if processes.total == 1:
        run(cfg, args)
    elif processes.by_torchrun:
        _join_torchrun(processes, cfg)
        _run(run, cfg, args)
    else:
        _start_processes(run, cfg, args)


def _run(run: Callable[[CfgNode, Namespace], Any], cfg: CfgNode, args: Namespace) -> None:
    run(cfg, args)
    comm.synchronize()
    distributed.destroy_process_group()


def _join_torchrun(processes: Processes, cfg: CfgNode) -> None:
    """Connect the processes that torchrun has started."""
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    # DistNetworkError and its like are RuntimeErrors.
    with as_input_error("torchrun's processes cannot be connected", *MISFITS):
        distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=engine.DEFAULT_TIMEOUT)
    comm.create_local_process_group(processes.per_machine)
    if on_gpu:
        torch.cuda.set_device(processes.local_rank)
    comm.synchronize()


def _start_processes(
    run: Callable[[CfgNode, Namespace], Any], cfg: CfgNode, args: Namespace
) -> None:
    """Start ``--num-gpus`` processes with Detectron2's launcher, and wait for them."""
    if cfg.MODEL.DEVICE == "cpu":
        _give_cores_to(args.num_gpus)
    mistakes = multiprocessing.get_context("spawn").SimpleQueue()
    previous = signal.signal(signal.SIGTERM, _pass_on)
    try:
        engine.launch(
            _run_in_child,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(run, cfg, args, mistakes),
        )
    except ProcessException as error:
        # Looked at whichever process failed: the others of one that ends lose their connection.
        if not mistakes.empty():
            raise InputError(mistakes.get()) from error
        if "init_process_group" in str(error):
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"--dist-url {args.dist_url} cannot be reached: {reason}") from error
        if not isinstance(error, ProcessExitedException):
            raise
        logger.error("%s", error)
        sys.exit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code)
    finally:
        signal.signal(signal.SIGTERM, previous)
        for process in multiprocessing.active_children():  # after a SIGINT to this one alone
            process.kill()


def _give_cores_to(num_processes: int) -> None:
    """Set the environment in which processes on CPUs are started."""
    cores = len(os.sched_getaffinity(0))
    threads = os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // num_processes)))
    # Detectron2's launcher takes NCCL where it sees a GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    logger.info(
        "Starting %d processes of %s threads on the CPU: MODEL.DEVICE is cpu, "
        "so --num-gpus counts processes",
        num_processes,
        threads,
    )


def _run_in_child(
    run: Callable[[CfgNode, Namespace], Any],
    cfg: CfgNode,
    args: Namespace,
    mistakes: "multiprocessing.SimpleQueue[str]",
) -> None:
    """What each process that is started runs: a mistake goes to the parent, which reports it.

    With the parent, even where that is killed, it ends, too.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    setup_logger(distributed_rank=comm.get_rank(), name="lda_aqu")
    try:
        _run(run, cfg, args)
    except Exception as error:
        line = mistake_in(error)
        if line is None:
            raise
        mistakes.put(line)
        sys.exit(2)


def _pass_on(signal_number: int, _frame: FrameType | None) -> None:
    """Send a signal that this process got to those it has started."""
    children = multiprocessing.active_children()
    if not children:
        sys.exit(128 + signal_number)
    for process in children:
        os.kill(process.pid, signal_number)
