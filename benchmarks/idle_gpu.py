"""An idle GPU runs nothing: Triton compiles for it and hands its launches to a function. Tensors are the CPU's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from mixerzoo.kernels import launch


class _Driver:
    """Answers what Triton's JIT asks of a driver.

    It calls `launched(name of the kernel, its code, grid, arguments)`.
    """

    def __init__(self, capability: int, launched: Callable[..., None]) -> None:
        self.target, self.launched = GPUTarget("cuda", capability, 32), launched
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024, "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, name: str, code: bytes, shared: int, device: int) -> tuple[Any, ...]:
        return self, (name, code), 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        def run(x: int, y: int, z: int, stream: int, function: tuple[str, bytes], *arguments: Any) -> None:
            self.launched(*function, (x, y, z), arguments[4:])  # the first four are metadata and hooks

        return run


@contextmanager
def idle_gpu(launched: Callable[..., None] = lambda *what: None, capability: int = 90) -> Iterator[None]:
    """Makes our ops treat tensors on the CPU as tensors on this GPU."""
    driver.set_active(_Driver(capability, launched))
    with patch.object(launch, "interpreted", lambda: True):
        yield
