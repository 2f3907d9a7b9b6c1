"""A meter measures a run's cost: seconds, peak memory, and energy where the machine's counters can be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
PROCESS = Path("/proc/self")


class Meter:
    """Counts from its construction on. A loaded state adds the cost before an interruption.

    energy_joules: of the GPU that torch uses (NVML), or of the whole processor (RAPL) with everything else on it; None
    if neither can be read. peak_memory_bytes: tensors on the GPU, or the process's resident memory.
    """

    def __init__(self) -> None:
        self._before: dict[str, Any] = {"seconds": 0.0, "energy_joules": 0.0, "peak_memory_bytes": 0}
        self._joules = _energy_counter()
        _reset_peak_memory()
        self._started = perf_counter()

    def read(self) -> dict[str, Any]:
        before, joules = self._before["energy_joules"], self._joules()
        return {
            "seconds": self._before["seconds"] + perf_counter() - self._started,
            "energy_joules": None if joules is None or before is None else before + joules,
            "peak_memory_bytes": max(self._before["peak_memory_bytes"] or 0, peak_memory() or 0) or None,
        }

    state_dict = read

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = dict(state)


def peak_memory() -> int | None:
    """Returns the peak in bytes since the last reset; None if the system doesn't report it."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        lines = (PROCESS / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


def _reset_peak_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        (PROCESS / "clear_refs").write_text("5")
    except OSError:
        return  # then the peak is the process's whole life's


def _energy_counter() -> Callable[[], float | None]:
    """Returns a function that reads the joules used from now on."""
    read = _gpu_joules if torch.cuda.is_available() else _processor_joules
    first = read()

    def since() -> float | None:
        now = read()
        return None if first is None or now is None else sum(_risen(*change) for change in zip(first, now, strict=True))

    return since


def _gpu_joules() -> list[tuple[float, float]] | None:
    """Returns (joules, value at which the counter restarts) of the device that torch uses."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        return [(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, 2**64 / 1e3)]
    except pynvml.NVMLError:
        return None


def _processor_joules() -> list[tuple[float, float]] | None:
    """Returns (joules, value at which the counter restarts) of every processor package.

    Most systems let only root read them.
    """
    packages = sorted(POWERCAP.glob("intel-rapl:[0-9]*"))
    packages = [package for package in packages if package.name.count(":") == 1]
    try:
        return [
            (int((p / "energy_uj").read_text()) / 1e6, int((p / "max_energy_range_uj").read_text()) / 1e6)
            for p in packages
        ] or None
    except OSError:
        return None


def _risen(first: tuple[float, float], now: tuple[float, float]) -> float:
    (before, size), (after, _) = first, now
    return (after - before) % size
