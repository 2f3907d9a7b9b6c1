"""What an image model's forward pass costs: images a second, and memory beside weights and input."""

from __future__ import annotations

import statistics
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


@torch.inference_mode()
def images_per_second(model: nn.Module, images: Tensor, repeats: int = 3) -> float:
    """From the median time of `repeats` forward passes after one that isn't counted."""
    model(images)
    seconds = []
    for _ in range(repeats):
        _synchronize(images)
        started = perf_counter()
        model(images)
        _synchronize(images)
        seconds.append(perf_counter() - started)
    return len(images) / statistics.median(seconds)


@torch.inference_mode()
def peak_bytes(model: nn.Module, images: Tensor) -> int:
    """The most memory that torch's allocator had given out during a forward pass, weights and input not counted."""
    if images.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        model(images)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        model(images)
    events = (event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]")
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):  # an allocation, or, negative, a release
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _synchronize(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize()
