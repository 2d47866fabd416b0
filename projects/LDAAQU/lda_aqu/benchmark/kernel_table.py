"""The table of what LDA-AQU makes a GPU do: launches, what they take, and memory traffic."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from .implementations import parse_implementation
from .kernel_compiler import resources
from .kernel_launches import Operation, recording
from .module_workload import ModuleWorkload
from .report import Row, Table
from .settings import Setting, Step

MB = 1e6


def kernel_tables(step: Step, setting: Setting) -> list[Table]:
    """Each operation of LDA-AQU, forward, then backward, and their sums.

    Kernels are compiled for sm_90; nothing is run on a GPU.
    """
    workload = ModuleWorkload(parse_implementation("LDAAQU:backend=triton"), step, setting)
    forward, _ = _record(workload)
    both, (output, *grads) = _record(replace(workload, backward=True))
    passes = {"forward": forward, "backward": both[len(forward) :]}
    # Of input and parameters, and the same of their gradients.
    inputs = sum(grad.nbytes for grad in grads)
    least = {"forward": inputs + output.nbytes, "backward": inputs + output.nbytes + inputs}

    rows = [_row(name, o) for name, operations in passes.items() for o in operations]
    sums = [_sums(name, operations, least[name]) for name, operations in passes.items()]
    notes = (
        "registers and spilled bytes: of a thread; shared: bytes of a program; of sm_90",
        "MB are 1e6 bytes. Each tensor that an operation reads or writes counts once, whole, as if "
        "a cache forgot nothing within an operation and everything between two",
        "rows without programs: operators of PyTorch, some of which launch several kernels",
    )
    minimum = (
        "least: input and parameters read once, the output written; backward these and the "
        "output's gradient read, all other gradients written"
    )
    return [
        Table("kernels", f"Operations, {step.name}", rows, notes),
        Table("kernel_sums", "Sums", sums, (minimum,)),
    ]


def _record(workload: ModuleWorkload) -> tuple[list[Operation], Sequence[Tensor]]:
    run = workload.prepare()
    with recording() as record:
        results = run()
    return record.operations, results if isinstance(results, tuple) else (results,)


def _row(name: str, operation: Operation) -> Row:
    launch = operation.launch
    used = resources(launch) if launch else None
    return {
        "pass": name,
        "operation": operation.name,
        "programs": launch and launch.programs,
        "threads": used and used.threads,
        "registers": used and used.registers,
        "spilled": used and used.spilled,
        "shared": used and used.shared,
        "MB read": operation.read / MB,
        "MB written": operation.written / MB,
    }


def _sums(name: str, operations: Sequence[Operation], least: int) -> Row:
    read, written = (sum(getattr(o, key) for o in operations) for key in ("read", "written"))
    kernels = sum(o.launch is not None for o in operations)
    return {
        "pass": name,
        "kernels": kernels,
        "operators of PyTorch": len(operations) - kernels,
        "MB read": read / MB,
        "MB written": written / MB,
        "least MB": least / MB,
        "over least": (read + written) / least,
    }
