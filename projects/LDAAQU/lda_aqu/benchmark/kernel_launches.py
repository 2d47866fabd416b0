"""What a GPU would be made to do, recorded without one."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..ops import BACKENDS, backends
from ..ops.triton import launch, maps

HOPPER = (9, 0)
HOPPER_MULTIPROCESSORS = 132  # of an H100 or H200


class Launch(NamedTuple):
    """A kernel of Triton, as it is launched."""

    kernel: triton.JITFunction
    values: dict[str, Any]
    """Of the kernel's parameters."""
    options: dict[str, Any]
    """Of the compiler."""
    programs: int


@dataclass(frozen=True)
class Operation:
    """A kernel that is launched, or an operator of PyTorch that launches some of its own.

    Of the bytes each tensor that is read or written counts once, whole: the traffic with a cache
    that forgets nothing within an operation, and everything between two.
    """

    name: str
    read: int
    written: int
    launch: Launch | None = None
    """None for an operator of PyTorch."""


class Recording(TorchDispatchMode):
    """The operations, in their order. PyTorch's own run; what is launched does not.

    What a kernel is given that nothing has written since it was allocated, it writes; it reads all
    else.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        # Of what was allocated uninitialised, by its address: addresses in it that were written.
        self._written: dict[int, set[int]] = {}

    @property
    def names(self) -> list[str]:
        """Of the operations."""
        return [operation.name for operation in self.operations]

    @property
    def launches(self) -> list[Launch]:
        """Those of this package's kernels."""
        return [operation.launch for operation in self.operations if operation.launch]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        """Run an operator; record it if it launches something."""
        kwargs = kwargs or {}
        with self:  # what an operator calls in its turn
            if func.namespace == "lda_aqu":
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        results = list(_tensors(result))
        if "empty" in name:
            self._written |= {_storage(tensor): set() for tensor in results}
        elif not func.is_view and results:
            targets = {tensor.data_ptr() for tensor in results}
            operands = (args[1:] if name == "copy_" else args, kwargs)
            sources = _tensors(operands)
            if "out" in kwargs:
                sources = (t for t in sources if t.data_ptr() not in targets)
            self.operations.append(Operation(name, _bytes(sources), _bytes(results)))
            for tensor in results:
                self._written.pop(_storage(tensor), None)
        return result

    def record_launch(
        self,
        kernel: triton.JITFunction,
        *arguments: Any,
        grid: tuple[int, ...] | Callable[[dict[str, Any]], tuple[int, ...]],
        warmup: bool,
        **constants: Any,
    ) -> None:
        """Take the place of ``triton.JITFunction.run``."""
        values = dict(zip(kernel.arg_names, arguments, strict=False))
        options = {k: v for k, v in constants.items() if k not in kernel.arg_names}
        values |= {k: v for k, v in constants.items() if k in kernel.arg_names}
        programs = math.prod(grid(values) if callable(grid) else grid)
        tensors = {tensor.data_ptr(): tensor for tensor in _tensors(arguments)}
        written = [tensor for tensor in tensors.values() if self._is_unwritten(tensor)]
        for tensor in written:
            del tensors[tensor.data_ptr()]
            self._written[_storage(tensor)].add(tensor.data_ptr())
        self.operations.append(
            Operation(
                kernel.__name__,
                _bytes(tensors.values()),
                _bytes(written),
                Launch(kernel, values, options, programs),
            )
        )

    def _is_unwritten(self, tensor: Tensor) -> bool:
        written = self._written.get(_storage(tensor))
        return written is not None and tensor.data_ptr() not in written


@contextmanager
def recording(
    capability: tuple[int, int] = HOPPER, multiprocessors: int = HOPPER_MULTIPROCESSORS
) -> Iterator[Recording]:
    """Record what the Triton backend would launch on a GPU like this, from maps on the CPU.

    Results are not computed.
    """
    result = Recording()
    backend = replace(BACKENDS["triton"], unavailable=lambda device: "")
    backends._candidates.cache_clear()
    try:
        with (
            patch.object(triton.JITFunction, "run", _run_in(result)),
            patch.object(launch, "_capability", lambda device: capability),
            patch.object(maps, "_multiprocessors", lambda device: multiprocessors),
            patch.dict(BACKENDS, triton=backend),
            result,
        ):
            yield result
    finally:
        backends._candidates.cache_clear()


def _run_in(record: Recording) -> Callable[..., None]:
    def run(kernel: triton.JITFunction, *arguments: Any, **options: Any) -> None:
        record.record_launch(kernel, *arguments, **options)

    return run


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors that are not empty of a value, which may be nested."""
    if isinstance(value, Tensor):
        if value.numel():
            yield value
    elif isinstance(value, dict):
        yield from _tensors([*value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(tensors: Any) -> int:
    """Of all tensors together; of one that is expanded, what there is."""
    return sum(
        t.itemsize * math.prod(n for n, stride in zip(t.shape, t.stride(), strict=True) if stride)
        for t in tensors
    )
