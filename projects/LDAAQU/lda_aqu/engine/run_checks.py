"""Checks of what a run was given, other than its data, made before any long work starts."""

import logging
import os
import socket
from argparse import Namespace
from urllib.parse import urlparse

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.projects.deeplab import build_lr_scheduler
from torch import nn

from .. import modeling  # noqa: F401  (registers the builders)
from ..errors import MISFITS, InputError, as_input_error
from .config_merge import config_items
from .launch import find_processes
from .optimizer import build_optimizer

logger = logging.getLogger(__name__)


GPU_NORMS = ("SyncBN", "nnSyncBN")
"""Detectron2's names of torch.nn.SyncBatchNorm, which among several processes is for GPUs alone."""


def check_processes(cfg: CfgNode, args: Namespace) -> None:
    """Raise InputError unless this machine can run the processes that are asked for.

    Args:
        cfg: the run's config.
        args: of Detectron2's argument parser.
    """
    processes = find_processes(args)
    if processes.by_torchrun:
        source = f"torchrun --nproc-per-node {processes.per_machine}"
        if args.num_gpus != 1 or args.num_machines != 1:
            raise InputError(
                "torchrun starts the processes: leave --num-gpus and --num-machines away"
            )
    else:
        source = f"--num-gpus {args.num_gpus}"
        _check_machines(args)
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cuda":
        available = torch.cuda.device_count()
        if processes.per_machine > available:
            raise InputError(f"{source}: this machine has {available} usable GPUs")
        if processes.total > 1 and device.index is not None:
            raise InputError(
                f"MODEL.DEVICE {cfg.MODEL.DEVICE!r} is one GPU: with {processes.total} processes "
                "it must be cuda, and each takes its own"
            )
    elif processes.total > 1:
        synchronised = [key for key, value in config_items(cfg) if value in GPU_NORMS]
        if synchronised:
            raise InputError(
                f"{synchronised[0]} {GPU_NORMS[0]} needs GPUs where there are several processes, "
                "and MODEL.DEVICE is cpu: naiveSyncBN runs there too"
            )


def _check_machines(args: Namespace) -> None:
    """Raise InputError unless ``--num-gpus``, ``--num-machines`` and its like fit each other."""
    for option, value in (("--num-gpus", args.num_gpus), ("--num-machines", args.num_machines)):
        if value < 1:
            raise InputError(f"{option} {value}: must be at least 1")
    if not 0 <= args.machine_rank < args.num_machines:
        raise InputError(
            f"--machine-rank {args.machine_rank}: with --num-machines {args.num_machines} it is "
            f"0 to {args.num_machines - 1}"
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        raise InputError(
            f"--num-machines {args.num_machines} needs --dist-url tcp://HOST:PORT, on each machine "
            "the same: an address of the machine of rank 0 and a free port there"
        )
    url = urlparse(args.dist_url)
    if url.scheme == "tcp" and args.num_gpus * args.num_machines > 1:
        # torch would try for half an hour.
        with as_input_error(f"--dist-url {args.dist_url}", OSError, ValueError):
            if not url.hostname or url.port is None:
                raise ValueError("a host and a port are needed, tcp://HOST:PORT")
            if args.num_machines == 1:
                socket.create_server((url.hostname, url.port)).close()
            socket.getaddrinfo(url.hostname, url.port)


def check_solver(cfg: CfgNode, num_processes: int) -> None:
    """Raise InputError unless the processes can share out a batch.

    Args:
        cfg: the run's config.
        num_processes: on all machines.
    """
    solver = cfg.SOLVER
    steps, reference = solver.ACCUMULATION_STEPS, solver.REFERENCE_WORLD_SIZE
    if reference and solver.IMS_PER_BATCH % reference:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} is not a multiple of "
            f"SOLVER.REFERENCE_WORLD_SIZE {reference}"
        )
    batch = solver.IMS_PER_BATCH // reference * num_processes if reference else solver.IMS_PER_BATCH
    if batch < 1 or batch % (num_processes * steps):
        raise InputError(
            f"SOLVER.IMS_PER_BATCH {batch} must be a multiple of the number of processes, "
            f"{num_processes}, times SOLVER.ACCUMULATION_STEPS {steps}"
        )


def check_model(cfg: CfgNode) -> None:
    """Raise InputError unless the config's model, optimizer and schedule can be built."""
    with as_input_error("the config's model cannot be built", *MISFITS):
        build_lr_scheduler(cfg, build_optimizer(cfg, build_on_cpu(cfg)))


def build_on_cpu(cfg: CfgNode) -> nn.Module:
    """The config's model, where building it costs a second and no memory that counts."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg)


def check_weights(cfg: CfgNode, *, resume: bool = False) -> None:
    """Raise InputError if ``MODEL.WEIGHTS`` is a local file that does not exist.

    Whether they fit the model is seen when :class:`~lda_aqu.engine.Checkpointer` loads them.

    Args:
        cfg: the run's config.
        resume: where ``OUTPUT_DIR`` has a last checkpoint, that is loaded instead.
    """
    weights = cfg.MODEL.WEIGHTS
    if resume and os.path.exists(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        return
    if not weights:
        logger.warning("MODEL.WEIGHTS is empty: the model starts from random weights")
    elif urlparse(weights).scheme == "" and not os.path.isfile(weights.partition("?")[0]):
        raise InputError(f"MODEL.WEIGHTS {weights!r} does not exist")
