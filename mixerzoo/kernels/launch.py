"""A Triton launch as a value: planned without a GPU, then run, compiled for another chip, or counted."""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Arguments = dict[str, Tensor | int | float | None]


@dataclass(frozen=True, eq=False)
class Program:
    """Names what Triton compiles: a kernel and its constants.

    `on_amd` and `on_ampere` (NVIDIA before sm_90) are the constants that differ there. Launches share one object,
    since it keeps what was compiled for it.

    max_registers: what a thread may have on NVIDIA, None leaves it to the assembler, which may move a few of them to
    memory so that one more program fits a multiprocessor.
    """

    kernel: Any
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 1
    max_registers: int | None = None
    on_amd: dict[str, Any] = field(default_factory=dict)
    on_ampere: dict[str, Any] = field(default_factory=dict)
    _compiled: dict[tuple[Any, ...], tuple[Any, ...]] = field(default_factory=dict, init=False, repr=False)

    @property
    def options(self) -> dict[str, int]:
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return options if self.max_registers is None else options | {"maxnreg": self.max_registers}

    def on(self, target: str) -> Program:
        """Returns the program as it runs on sm_80, sm_90, ..., or gfx942.

        AMD has wavefronts of 64 lanes instead of warps of 32, and no
        instruction of NVIDIA's."""
        if target.startswith("sm_"):
            return replace(self, constants=self.constants | self.on_ampere) if int(target[3:]) < 90 else self
        constants = self.constants | self.on_amd | ({"FAST_MATH": False} if "FAST_MATH" in self.constants else {})
        return replace(self, constants=constants, num_warps=max(1, self.num_warps // 2), max_registers=None)

    def run(self, grid: tuple[int, ...], arguments: Arguments, device: torch.device) -> None:
        """Launches the code that is compiled for these arguments.

        Triton looks at every argument and constant of every call to find it, which takes ten times as long. Less tells
        them apart here: the device, the tensors' dtypes, which are None, and which begin at a multiple of 16 bytes.
        Numbers don't: kernels aren't specialised on them, or a program always has the same."""
        tensors = (x for x in arguments.values() if x is None or isinstance(x, Tensor))
        key = (device, *[x if x is None else (x.dtype, x.data_ptr() % 16 == 0) for x in tensors])
        if key in self._compiled:
            compiled, names, constants = self._compiled[key]
            in_three = (*grid, 1, 1)[:3]
            compiled[in_three](*[arguments[name] for name in names], *constants)
            return
        program = self.on(_target(device)) if device.type == "cuda" else self
        compiled = self.kernel[grid](**arguments, **program.constants, **program.options)
        if compiled is not None and not torch.version.hip:  # not interpreted; AMD's depends on sizes too
            names, rest = self.kernel.arg_names[: len(arguments)], self.kernel.arg_names[len(arguments) :]
            self._compiled[key] = compiled, names, [program.constants[name] for name in rest]


@dataclass(frozen=True)
class Launch:
    """One launch of one program. `arguments` are what differs from call to call."""

    program: Program
    grid: tuple[int, ...]
    arguments: Arguments

    def run(self) -> None:
        """On the tensors' GPU, whichever is the current one."""
        tensor = next(x for x in self.arguments.values() if isinstance(x, Tensor))
        with torch.cuda.device_of(tensor):
            self.program.run(self.grid, self.arguments, tensor.device)


@functools.cache
def _target(device: torch.device) -> str:
    return "gfx" if torch.version.hip else "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def interpreted() -> bool:
    """Says whether Triton's interpreter stands in for a GPU, which it decides when a kernel's module is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not_triton(tensor: Tensor) -> str | None:
    """The reason why no kernel of ours can run on this tensor's device and dtype."""
    if not (tensor.is_cuda or (interpreted() and tensor.device.type == "cpu")):
        return f"needs a GPU, got tensors on {tensor.device.type}"
    if tensor.is_cuda and tensor.dtype in (torch.float64, torch.complex128):
        return f"no {tensor.dtype} on a GPU"
    if not torch.compiler.is_compiling() and importlib.util.find_spec("triton") is None:
        return "triton isn't installed"
    return None
