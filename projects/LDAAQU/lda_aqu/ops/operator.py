"""What every operator of this package is: a schema, shapes and a gradient, whatever computes it.

An operator is made by one :class:`Operator` in its file of contract (:mod:`.attention`,
:mod:`.offset_network`, :mod:`.projection`, :mod:`.reassembly`); it is computed by the function of
its name in the file of that name of a backend (:mod:`.plain`, :mod:`.cpp`, :mod:`.triton`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .backends import check_backend, choose, choose_implementation
from .layout import Layout
from .standard import is_exporting, is_forward_mode, is_transformed

# Defined and differentiated by hand: by `torch.library.custom_op` a call takes three times as long,
# and small maps take a GPU no longer than the calls themselves.
_LIBRARY = torch.library.Library("lda_aqu", "DEF")

Inputs = tuple[Any, ...]
Layouts = Callable[..., list[Layout]]


class Operator:
    """An operator ``torch.ops.lda_aqu.<name>`` with a gradient, for any backend.

    Its inputs are tensors, None and plain values, the last of them the name of the backend. It
    returns a list of new tensors, and so do the functions of the backends, which are given the
    inputs but for the backend.

    Its gradient is computed by the function ``<name>_backward`` of the backend. That is given the
    gradients of the results, as a list, and what is saved; it returns a gradient for each tensor
    among the inputs, in their order. Where the gradient is to be differentiated in its turn, the
    function of the plain backend is, which is ordinary PyTorch.

    Args:
        name: of the operator, and of the functions that compute it.
        file: name of the files that hold these functions, in each backend's folder.
        results: called with the inputs; raises RuntimeError unless they fit, and returns the
            layouts of the results. It is called with fake tensors, too. Its annotations are the
            schema.
        standard: called with the inputs; computes the results in standard operators, for exporters
            and for transforms of functions.
        grads: called with what is saved; returns the layouts of the gradients.
        save: makes, of the inputs and the results, what is saved; by default the inputs are. If it
            is given, the annotations of ``grads`` are the schema of the gradient's operator.
        derivative: where given, computes the gradient in place of functions of the backends, by
            other operators: called with the gradients, the inputs and the name of the backend.
    """

    def __init__(
        self,
        name: str,
        file: str,
        results: Layouts,
        standard: Callable[..., list[Tensor]],
        grads: Layouts | None = None,
        save: Callable[[Inputs, Sequence[Tensor]], Inputs] | None = None,
        derivative: Callable[..., Sequence[Tensor]] | None = None,
    ) -> None:
        self._name, self._file, self._results = name, file, results
        self._standard, self.save = standard, save or (lambda inputs, results: inputs)
        self._prepared: set[tuple] = set()  # kinds of inputs
        self.forward = _define(name, file, results, results)
        _LIBRARY.impl(name, self._call_differentiably, "Autograd")
        if derivative is None:
            schema = grads if save else results
            backward = _define(f"{name}_backward", file, grads, schema, takes_grads=True)

            def derivative(grads: Sequence[Tensor], *saved: Any) -> Sequence[Tensor | None]:
                if not (torch.is_grad_enabled() or is_transformed()):
                    return backward(grads, *saved)
                plain = choose_implementation("plain", file, f"{name}_backward", saved)
                if torch.is_grad_enabled():
                    return plain(grads, *saved[:-1])
                with torch.enable_grad():  # a transform acts on the operators of that case alone
                    results = plain(grads, *saved[:-1])
                return [None if result is None else result.detach() for result in results]

        self.derivative = derivative

    def __call__(self, *inputs: Any, backend: str) -> list[Tensor]:
        """The results.

        Raises:
            InputError: unknown backend.
            RuntimeError: the inputs do not fit, or the backend that was asked for cannot run.
        """
        check_backend(backend)
        # In an export sizes may be tensors: nothing is checked.
        if is_exporting():
            return self._standard(*inputs)
        if is_transformed():
            return self._call_transformed(*inputs, backend)
        return self.forward(*inputs, backend)

    def prepare(self, *inputs: Any) -> None:
        """Let the backend prepare a call and its gradient, if the first input is of a new kind."""
        *inputs, backend = inputs
        x = inputs[0]
        kind = (x.device, x.dtype, x.shape[1:2], x.is_contiguous())
        if kind not in self._prepared:
            self._results(*inputs)
            self._prepared.add(kind)
            chosen, module = choose(backend, self._file, self._name, inputs)
            if ahead := chosen.file("ahead"):
                inputs = tuple(map(_without_values, inputs))
                ahead.prepare(x.device, partial(self._rehearse, module, inputs))

    def _rehearse(self, module: ModuleType, inputs: Inputs) -> None:
        results = getattr(module, self._name)(*inputs)
        if backward := getattr(module, f"{self._name}_backward", None):
            backward(results, *self.save(inputs, results))

    def _call_transformed(self, *inputs: Any) -> list[Tensor]:
        *inputs, backend = inputs
        if backend not in ("auto", "plain"):
            raise RuntimeError(
                f"backend {backend!r} cannot run under a transform of torch.func or in "
                "forward-mode differentiation: use 'auto' or 'plain'"
            )
        return self._standard(*inputs)

    def _call_differentiably(self, *inputs: Any) -> list[Tensor]:
        if is_forward_mode():  # of a graph that has the operator
            return self._call_transformed(*inputs)
        if torch.is_grad_enabled() and any(_requires_grad(value) for value in inputs):
            return list(_Differentiable.apply(self, *inputs))
        with torch._C._AutoDispatchBelowAutograd():
            return self.forward(*inputs)


class _Differentiable(torch.autograd.Function):
    """The link of an operator to its gradient."""

    @staticmethod
    def forward(ctx, operator: Operator, *inputs: Any) -> tuple[Tensor, ...]:
        if inputs[0].is_cuda and type(inputs[0]) is Tensor:  # not one that a compiler traces with
            operator.prepare(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            results = operator.forward(*inputs)
        *inputs, backend = inputs
        saved = (*operator.save(tuple(inputs), results), backend)
        ctx.save_for_backward(*(s if isinstance(s, Tensor) else None for s in saved))
        ctx.values = [None if isinstance(s, Tensor) else s for s in saved]
        ctx.are_tensors = [isinstance(value, Tensor) for value in (*inputs, backend)]
        ctx.operator = operator
        return tuple(results)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Read once: activation checkpointing allows a single access.
        tensors = ctx.saved_tensors
        saved = [v if t is None else t for t, v in zip(tensors, ctx.values, strict=True)]
        results = iter(ctx.operator.derivative(list(grads), *saved))
        return (None, *(next(results) if is_one else None for is_one in ctx.are_tensors))


def _requires_grad(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _without_values(value: Any) -> Any:
    """The like of a tensor on "meta"."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


# How the annotations of a function are written in an operator's schema.
_SCHEMA_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    int: "SymInt",
    float: "float",
    torch.dtype: "ScalarType",
    Sequence[int]: "SymInt[]",
    Sequence[int] | None: "SymInt[]?",
}


def _define(
    name: str, file: str, layouts: Layouts, schema: Layouts, takes_grads: bool = False
) -> Any:
    """Define an operator that is computed by the function ``name`` of a backend's ``file``.

    Its parameters are those of ``schema``; before them, the gradients where it ``takes_grads``;
    after them, the backend.
    """
    first = 1 if takes_grads else 0
    parameters = [
        *(["Tensor[] grads"] if takes_grads else []),
        *(
            f"{_SCHEMA_TYPES[parameter.annotation]} {parameter.name}"
            for parameter in inspect.signature(schema, eval_str=True).parameters.values()
        ),
        "str backend",
    ]

    def compute(*inputs: Any) -> list[Tensor]:
        *inputs, backend = inputs
        layouts(*inputs[first:])
        # Autograd sees none of it: results that are views here are new tensors outside, which may
        # be changed in place.
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return choose_implementation(backend, file, name, inputs)(*inputs)

    def fake(*inputs: Any) -> list[Tensor]:
        device = next(value for value in inputs[first:] if isinstance(value, Tensor)).device
        return [layout.empty(device) for layout in layouts(*inputs[first:-1])]

    _LIBRARY.define(f"{name}({', '.join(parameters)}) -> Tensor[]")
    _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lda_aqu::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.lda_aqu, name).default


def check(condition: bool, message: Callable[[], str]) -> None:
    """Raise RuntimeError with a message, which is made then, unless a condition holds."""
    if not condition:
        raise RuntimeError(message())


def check_tensors(*tensors: Tensor | None) -> None:
    """Raise RuntimeError unless tensors can be inputs of one call. Works on fake tensors."""
    present = [tensor for tensor in tensors if tensor is not None]
    device = present[0].device
    for tensor in present:
        if not tensor.is_floating_point() or tensor.device != device:
            raise RuntimeError("expected floating-point tensors on one device")
        if 0 in tensor.shape[1:]:
            raise RuntimeError(f"only a batch may be empty, got {tuple(tensor.shape)}")


def check_shapes(**parameters: tuple[Tensor, tuple[int, ...]]) -> None:
    """Raise RuntimeError, naming it, if a parameter has another shape than the one beside it."""
    for name, (parameter, shape) in parameters.items():
        if tuple(parameter.shape) != shape:
            raise RuntimeError(f"expected {name} {shape}, got {tuple(parameter.shape)}")
