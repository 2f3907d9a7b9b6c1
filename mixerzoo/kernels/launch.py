"""A Triton launch as a value: planned without a GPU, then run, compiled for another chip, or counted."""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """One launch of one kernel. `arguments` are what differs from call to call, `constants` what it is compiled for,
    `on_amd` and `on_ampere` (NVIDIA before sm_90) those of them that differ there."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Tensor | int | float | None]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 1
    on_amd: dict[str, Any] = field(default_factory=dict)
    on_ampere: dict[str, Any] = field(default_factory=dict)

    def on(self, target: str) -> Launch:
        """As it runs on sm_80, sm_90, ..., or gfx942: AMD has wavefronts of 64 lanes instead of warps of 32, and no
        instruction of NVIDIA's."""
        if target.startswith("sm_"):
            return replace(self, constants=self.constants | self.on_ampere) if int(target[3:]) < 90 else self
        constants = self.constants | self.on_amd | ({"FAST_MATH": False} if "FAST_MATH" in self.constants else {})
        return replace(self, constants=constants, num_warps=max(1, self.num_warps // 2))

    def run(self) -> None:
        """On the tensors' GPU, whichever is the current one."""
        tensor = next(x for x in self.arguments.values() if isinstance(x, Tensor))
        launch = self.on(_target(tensor.device)) if tensor.is_cuda else self
        options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
        with torch.cuda.device_of(tensor):
            self.kernel[self.grid](**launch.arguments, **launch.constants, **options)


@functools.cache
def _target(device: torch.device) -> str:
    return "gfx" if torch.version.hip else "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU, which it decides when a kernel's module is imported."""
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
