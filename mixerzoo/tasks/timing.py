"""Timing measures a piece of work on this machine: median seconds, and memory on top of what was allocated before."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter

import torch
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], object]


def median_seconds(work: Work, device: torch.device, repeats: int = 3) -> float:
    """Returns the median over `repeats` calls, after one call that doesn't count."""
    work()
    seconds = []
    for _ in range(repeats):
        _synchronize(device)
        started = perf_counter()
        work()
        _synchronize(device)
        seconds.append(perf_counter() - started)
    return statistics.median(seconds)


def peak_bytes(work: Work, device: torch.device) -> int:
    """Returns the peak of torch's allocated memory during a call, less what was allocated before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = (event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]")
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):  # an allocation, or, negative, a release
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
