"""Launches compiled ahead of time for a chip that isn't there, and what each of them takes of it.

A launch is specialised and compiled by Triton's own JIT, so that what is judged is what a GPU would run; only the
driver is replaced, by one that names the chip.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..launch import Launch, interpreted

# Bytes of shared memory (LDS) that one program may have: CUDA C programming guide, table "Technical Specifications per
# Compute Capability"; AMD Instinct MI300 ISA, section 11.
SHARED_LIMITS = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
TARGETS = tuple(SHARED_LIMITS)


@dataclass(frozen=True)
class Compiled:
    """Records what a launch takes: registers of a thread, spilled bytes of a thread, bytes of shared memory.

    parked: scalar registers that moved into lanes of vector registers, as AMD's compiler does before it touches memory.
    A few instructions, nothing that leaves the chip, so that it is shown and does not count as a spill.
    """

    kernel: str
    target: str
    num_warps: int
    registers: int
    spilled: int
    shared: int
    parked: int = 0

    @property
    def shared_limit(self) -> int:
        return SHARED_LIMITS[self.target]

    @property
    def fits(self) -> bool:
        return self.spilled == 0 and self.shared <= self.shared_limit


def compile_launch(launch: Launch, target: str) -> Compiled:
    """Describes the chip as `machine_code` needs it."""
    code, program = machine_code(launch, target), launch.program.on(target)
    asm, shared = code.asm, code.metadata.shared
    registers, spilled, parked = _nvidia(asm["cubin"]) if "cubin" in asm else _amd(asm["amdgcn"])
    return Compiled(program.kernel.__name__, target, program.num_warps, registers, spilled, shared, parked)


def machine_code(launch: Launch, target: str) -> Any:
    """Triton's compiled kernel. Needs neither a GPU nor its driver; the launch's tensors may be on `meta`. From then on
    this process compiles for that chip, and runs no kernel.

    Raises ValueError for an unknown target and under Triton's interpreter, which has no compiler.
    """
    require_compiler()
    _pretend(target)
    program = launch.program.on(target)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")  # Triton's default is what is judged
        return program.kernel.warmup(**launch.arguments, **program.constants, **program.options, grid=launch.grid)


def require_compiler() -> None:
    if interpreted():
        raise ValueError(
            "kernels can't be compiled while TRITON_INTERPRET=1 puts an interpreter in the compiler's place;"
            " remedy: unset TRITON_INTERPRET"
        )


def check_target(target: str) -> None:
    if target not in TARGETS:
        raise ValueError(f"unknown target {target!r}; known: {', '.join(TARGETS)}")


@dataclass(frozen=True)
class _Driver:
    """Answers what Triton's JIT asks of a driver before it compiles; the device is the chip's name."""

    name: str
    target: Any

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> str:
        return self.name

    def get_current_stream(self, device: str) -> int:
        return 0


def _pretend(name: str) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    check_target(name)
    target = GPUTarget("cuda", int(name[3:]), 32) if name.startswith("sm_") else GPUTarget("hip", name, 64)
    driver.set_active(_Driver(name, target))


def _nvidia(cubin: bytes) -> tuple[int, int, int]:
    """Registers, and the stack frame: kernels of Triton keep no arrays and call no functions there, only spills."""
    import triton

    name = "cuobjdump.exe" if os.name == "nt" else "cuobjdump"
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [str(tool), "--dump-resource-usage", str(file)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return _number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage) + _number(r"LOCAL:(\d+)", usage), 0


def _amd(assembly: str) -> tuple[int, int, int]:
    """Vector registers (both kinds), scratch memory, and scalar registers that no memory was needed for."""
    vector, scalar = (_number(rf"\.{kind}gpr_spill_count: +(\d+)", assembly) for kind in "vs")
    scratch = _number(r"\.private_segment_fixed_size: +(\d+)", assembly)
    return _number(r"\.vgpr_count: +(\d+)", assembly), max(4 * vector, scratch), scalar


def _number(pattern: str, text: str) -> int:
    if (found := re.search(pattern, text)) is None:
        raise RuntimeError(f"no {pattern!r} in the compiler's report:\n{text[-2000:]}")
    return int(found[1])
