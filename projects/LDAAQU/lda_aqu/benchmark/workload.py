"""One upsampler at one size, ready to be run: its inputs, its parameters, its gradients."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..upsamplers import GuidedUpsampler, Upsampler
from .implementations import Implementation
from .shapes import Step

MEMORY_FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Setting:
    """Where and how everything is run: on which device, with which numbers in which order."""

    device: str = "cpu"
    dtype: str = "float32"
    memory_format: str = "contiguous"

    def randn(self, *shape: int, seed: int) -> Tensor:
        """Standard normal numbers, the same for the same seed whatever the setting."""
        generator = torch.Generator().manual_seed(seed)
        tensor = torch.randn(*shape, generator=generator).to(self.device, DTYPES[self.dtype])
        return tensor.contiguous(memory_format=MEMORY_FORMATS[self.memory_format])


DEFAULT_SETTING = Setting()


@dataclass(frozen=True)
class Workload:
    """One implementation at one step, forward or forward and backward.

    It is small and can be sent to another process; :meth:`prepare` makes the tensors.
    """

    implementation: Implementation
    step: Step
    setting: Setting = DEFAULT_SETTING
    backward: bool = False

    def prepare(self) -> Callable[[], Any]:
        """Make module and inputs, and return what runs them.

        Returns:
            A function without arguments that returns the output, or with ``backward`` a tuple of
            the output and the gradients of the input, the guide if any, and each parameter.
        """
        module = self.build()
        x, size_or_guide = self.inputs(module)
        if not self.backward:

            def forward() -> Tensor:
                with torch.no_grad():
                    return module(x, size_or_guide)

            return forward

        grad_output = self.setting.randn(1, self.step.channels, *self.step.output_size, seed=2)
        maps = [t.requires_grad_() for t in (x, size_or_guide) if isinstance(t, Tensor)]
        wanted = [*maps, *module.parameters()]

        def forward_and_backward() -> tuple[Tensor, ...]:
            output = module(x, size_or_guide)
            return output.detach(), *torch.autograd.grad(output, wanted, grad_output)

        return forward_and_backward

    def build(self) -> Upsampler:
        """The module, with parameters that are the same for the same upsampler and options.

        They are the initial values and a little noise, so that the offsets of LDA-AQU, which are
        zero at first, are several pixels and memory is read as by a trained model.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = self.implementation.build(self.step.channels)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter += 0.05 * torch.randn_like(parameter)
        setting = self.setting
        return module.to(
            setting.device,
            DTYPES[setting.dtype],
            memory_format=MEMORY_FORMATS[setting.memory_format],
        )

    def inputs(self, module: Upsampler) -> tuple[Tensor, Tensor | tuple[int, int]]:
        """The map to be upsampled, and the second argument: the output's size, or a guide."""
        x = self.setting.randn(1, self.step.channels, *self.step.input_size, seed=1)
        if isinstance(module, GuidedUpsampler):
            return x, self.setting.randn(1, self.step.channels, *self.step.output_size, seed=3)
        return x, self.step.output_size

    def smallest(self) -> "Workload":
        """The same at a size that costs nothing, to warm up with."""
        return replace(self, step=Step("", self.step.channels, (4, 4), (8, 8)))
