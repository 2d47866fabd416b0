"""What Triton's compiler makes of a launch, for GPUs that need not be here."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import mangle_type

from .kernel_launches import Launch

SM_80, SM_90 = (GPUTarget("cuda", capability, 32) for capability in (80, 90))
GFX942 = GPUTarget("hip", "gfx942", 64)


@dataclass(frozen=True)
class Resources:
    """What a kernel takes of a multiprocessor of NVIDIA's."""

    threads: int
    """Of a program."""
    registers: int
    """Of a thread."""
    spilled: int
    """Bytes of a thread on its stack, where the compiler puts what registers do not hold."""
    shared: int
    """Bytes of shared memory of a program."""


def compile_for(target: GPUTarget, launch: Launch) -> CompiledKernel:
    """Compile as Triton would at a launch with these values."""
    kernel, values, options, _ = launch
    constants = {
        p.name: values[p.name]
        for p in kernel.params
        if p.is_constexpr
        or values[p.name] is None
        or (isinstance(values[p.name], int) and values[p.name] == 1 and not p.do_not_specialize)
    }
    signature, aligned = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif isinstance(values[name], tuple):
            signature[name] = tuple(map(mangle_type, values[name]))
            aligned |= {(i, j): [["tt.divisibility", 16]] for j in range(len(values[name]))}
        else:
            signature[name] = mangle_type(values[name])
            if signature[name].startswith("*"):
                aligned[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=target, options=options)


def resources(launch: Launch) -> Resources:
    """What it takes on sm_90."""
    compiled = compile_for(SM_90, launch)
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        usage = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(binary)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    sizes = {name: int(size) for name, size in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return Resources(
        32 * compiled.metadata.num_warps,
        sizes["REG"],
        sizes["STACK"] + sizes["LOCAL"],
        compiled.metadata.shared,
    )
