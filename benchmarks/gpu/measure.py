"""Measures contenders' time and peak memory, and the device's ceilings; a killed run leaves its results behind."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from goals import BOTH, FORWARD
from torch import Tensor

Run = Callable[[], Any]
Op = Callable[..., Any]
WARM_UP = 3
LATE = "not run: the minutes were used up"
FLUSH = 2**28  # bytes, several times any L2 cache


class Meter:
    """Times runs on a device, with its cache flushed before each; nothing new begins after `deadline`."""

    def __init__(self, device: torch.device, seconds: float, smoke: bool) -> None:
        self.device, self.smoke = device, smoke
        self.deadline = time.monotonic() + seconds
        self.rounds, self.budget = (2, 1.0) if smoke else (20, 2.0)
        self.flushed = torch.empty(2**16 if smoke else FLUSH, dtype=torch.int8, device=device)

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def seconds(self, run: Run) -> float:
        self.flushed.zero_()
        if not self.cuda:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def peak(self, run: Run) -> int | None:
        """Returns the bytes that a run takes on top of what is allocated; None on a CPU."""
        if not self.cuda:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


@dataclass
class Result:
    """Holds every time of one contender, or the error that ended it."""

    seconds: list[float]
    peak: int | None = None
    error: str | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds and self.error is None else None


def attempt(action: Callable[[], Any]) -> tuple[Any, str | None]:
    """Returns (the action's result, None), or (None, its error in one line)."""
    try:
        return action(), None
    except Exception as error:
        text = " ".join(str(error).split())
        return None, f"{type(error).__name__}: {text}"[:300]


def compete(runs: dict[str, Run], meter: Meter) -> dict[str, Result]:
    """Times contenders in turns (A B C A B C ...), after a warm-up of each. If one fails, the others continue."""
    results = {name: Result([]) for name in runs}
    for name, run in runs.items():
        results[name].error = LATE if meter.late else _warm_up(run, meter, results[name])
    for _ in range(meter.rounds):
        for name, run in runs.items():
            result = results[name]
            if result.error is None and sum(result.seconds) < meter.budget:
                value, result.error = attempt(lambda run=run: meter.seconds(run))
                result.seconds += [] if value is None else [value]
    return results


def _warm_up(run: Run, meter: Meter, result: Result) -> str | None:
    for _ in range(1 if meter.smoke else WARM_UP):
        _, error = attempt(run)
        if error is not None:
            return error
    result.peak, error = attempt(lambda: meter.peak(run))
    return error


@dataclass
class Passes:
    """Holds one contender, ready to run. A pass that its group doesn't time is None."""

    forward: Run | None
    both: Run | None


@dataclass
class Group:
    """Holds contenders by name, and each pass's minimum: bytes to move, FLOPs."""

    contenders: dict[str, Callable[[], Passes]]
    passes: tuple[str, ...] = (FORWARD, BOTH)
    bytes: dict[str, float] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)


def passes(function: Op, inputs: list[Tensor]) -> Passes:
    """Returns inference, and a forward pass with the gradients of all inputs."""
    cotangent: list[Tensor] = []

    def forward() -> None:
        with torch.no_grad():
            function(*inputs)

    def both() -> None:
        y = function(*inputs)
        if not cotangent:
            cotangent.append(torch.randn_like(y))
        torch.autograd.grad(y, inputs, cotangent[0], allow_unused=True)

    return Passes(forward, both)


def compulsory(inputs: list[Tensor], y: Tensor) -> dict[str, float]:
    """Returns each pass's least bytes.

    Forward reads the inputs and writes y; backward reads the inputs and dy and writes the inputs' gradients.
    """
    read, written = (sum(x.numel() * x.element_size() for x in tensors) for tensors in (inputs, [y]))
    return {FORWARD: read + written, BOTH: 3 * read + 2 * written}


def inference(run: Run) -> Passes:
    return Passes(torch.no_grad()(run), None)


def captured(ready: Passes, device: torch.device) -> Passes:
    """Captures the forward pass as a CUDA graph, which replays its launches without the host.

    Without CUDA the pass stays unchanged.
    """
    if ready.forward is None or device.type != "cuda":
        return ready
    return Passes(capture(ready.forward).replay, None)


def capture(run: Run) -> torch.cuda.CUDAGraph:
    """Captures a run, after a warm-up on a stream of its own, as torch asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def ceilings(meter: Meter) -> dict[str, float | None]:
    """Measures bytes a second of a copy within the device, and FLOP a second of a bf16 matrix product."""
    size, n = (2**16, 64) if meter.smoke else (2**30, 8192)
    source, target = (torch.zeros(size, dtype=torch.int8, device=meter.device) for _ in range(2))
    a, b = (torch.randn(n, n, device=meter.device).bfloat16() for _ in range(2))
    results = compete({"copy": lambda: target.copy_(source), "matmul": lambda: a @ b}, meter)
    copy, matmul = results["copy"].median, results["matmul"].median
    return {"copy_bandwidth": copy and 2 * size / copy, "matmul_rate": matmul and 2 * n**3 / matmul}


class Record:
    """Writes a dictionary as JSON after every change, so that the file always loads."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path, self.values = path, values
        path.parent.mkdir(parents=True, exist_ok=True)
        self.save()

    def save(self) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.values, indent=1) + "\n", encoding="utf-8")
        os.replace(new, self.path)


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def gradients(results: tuple[Tensor, ...], inputs: list[Tensor], cotangents: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(results, inputs, cotangents, allow_unused=True, materialize_grads=True)
