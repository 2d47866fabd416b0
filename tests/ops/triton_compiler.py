"""Compiling Triton's kernels for GPUs that need not be here."""

import re
import subprocess
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import mangle_type

SM_80, SM_90 = (GPUTarget("cuda", capability, 32) for capability in (80, 90))
GFX942 = GPUTarget("hip", "gfx942", 64)

Launch = tuple[triton.JITFunction, dict[str, Any], dict[str, Any]]
"""A kernel, its arguments by name, and the compiler's options."""


def record_launches(monkeypatch) -> list[Launch]:
    """From now on what is launched is recorded, in the place of launching it."""
    launches: list[Launch] = []

    def record(kernel, *arguments, grid, warmup, **constants):
        values = dict(zip(kernel.arg_names, arguments, strict=False))
        options = {k: v for k, v in constants.items() if k not in kernel.arg_names}
        values |= {k: v for k, v in constants.items() if k in kernel.arg_names}
        launches.append((kernel, values, options))

    monkeypatch.setattr(triton.JITFunction, "run", record)
    return launches


def compile_for(target: GPUTarget, launch: Launch) -> CompiledKernel:
    """Compile as Triton would at a launch with these values."""
    kernel, values, options = launch
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


def bytes_on_the_stack(launch: Launch, folder: Path) -> int:
    """Of a thread on Hopper; what registers do not hold is spilled there."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(compile_for(SM_90, launch).asm["cubin"])
    usage = subprocess.run(
        [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(binary)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return sum(int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", usage))
