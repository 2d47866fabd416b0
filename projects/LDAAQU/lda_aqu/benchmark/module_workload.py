"""One upsampler at one size, ready to be run: its inputs, its parameters, its gradients."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..upsamplers import GuidedUpsampler, Upsampler
from .implementations import Implementation
from .settings import DTYPES, MEMORY_FORMATS, Setting, Step


@dataclass(frozen=True)
class ModuleWorkload:
    """One implementation at one step, forward or forward and backward.

    It is small and can be sent to another process; :meth:`prepare` makes the tensors.
    """

    implementation: Implementation
    step: Step
    setting: Setting
    backward: bool = False

    def prepare(self) -> Callable[[], Any]:
        """Make module and inputs, and return what runs them without arguments.

        That returns the output, or with ``backward`` a tuple of the output and the gradients of
        the input, the guide if any, and each parameter.
        """
        module = self.build()
        x, size_or_guide = self._map(self.step.input_size, seed=1), self.step.output_size
        if isinstance(module, GuidedUpsampler):
            size_or_guide = self._map(self.step.output_size, seed=3)

        def forward() -> Tensor:
            with torch.set_grad_enabled(self.backward), self.setting.autocasting():
                return module(x, size_or_guide)

        if not self.backward:
            return forward
        grad_output = self._map(self.step.output_size, seed=2)
        maps = [t.requires_grad_() for t in (x, size_or_guide) if isinstance(t, Tensor)]
        wanted = [*maps, *module.parameters()]

        def forward_and_backward() -> tuple[Tensor, ...]:
            output = forward()
            return output.detach(), *torch.autograd.grad(output, wanted, grad_output)

        return forward_and_backward

    def build(self) -> Upsampler:
        """The module, with parameters that are the same for the same upsampler and options.

        They are the initial values and a little noise, so that the offsets of LDA-AQU, which are
        zero at first, are several pixels and memory is read as by a trained model.
        """
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            module = self.implementation.build(self.step.channels)
            for parameter in module.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        memory_format = MEMORY_FORMATS[self.setting.memory_format]
        dtype = DTYPES[self.setting.dtype]
        return module.to(self.setting.device, dtype, memory_format=memory_format)

    def smallest(self) -> "ModuleWorkload":
        """The same at a size that costs nothing, to warm up with."""
        return replace(self, step=replace(self.step, input_size=(4, 4), output_size=(8, 8)))

    def _map(self, size: tuple[int, int], seed: int) -> Tensor:
        shape = (self.setting.batch_size, self.step.channels, *size)
        return self.setting.randn(*shape, seed=seed, dtype=self.setting.map_dtype)
