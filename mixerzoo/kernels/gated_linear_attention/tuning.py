"""Measured schedules, for `with use_backend("triton", tune=True)`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.benchmark import Timer

from .schedule import Schedule
from .triton_plan import Call

SECONDS = 0.02  # that each candidate runs for, at least

_fastest: dict[tuple, Schedule] = {}


def fastest(call: Call, run: Callable[[Call], None]) -> Call:
    """`call` with the schedule with which `run` took the least time, at the first call of this shape on this device."""
    q, packed = call.q, call.cu_seqlens is not None
    key = (q.device, *q.shape[:2], call.sequences, packed, call.variant)
    if key not in _fastest:
        if q.is_cuda and torch.cuda.is_current_stream_capturing():
            return call
        _fastest[key] = min(call.candidates, key=lambda schedule: _seconds(call.scheduled(schedule), run))
    return call.scheduled(_fastest[key])


def _seconds(call: Call, run: Callable[[Call], None]) -> float:
    """The median; the first, which compiles, is not counted."""
    run(call)
    return Timer("run(call)", globals={"run": run, "call": call}).blocked_autorange(min_run_time=SECONDS).median
