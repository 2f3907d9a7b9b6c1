"""Spreads chunks of work over several cores. The results come in order and don't depend on the number of cores."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
Progress = Callable[[int, int], None]


def in_order(make: Callable[[int], T], first: int, last: int, workers: int | None) -> Generator[T, None, None]:
    """Yields `make(i)` for i from `first` up to but without `last`, from `workers` processes, by default one a core.

    `make` must be importable, a module's function or a `functools.partial` of one.
    """
    workers = min(workers or usable_cores(), last - first)
    if workers <= 1:
        yield from map(make, range(first, last))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_follow_parent) as pool:
        try:
            yield from pool.map(make, range(first, last))
        finally:
            pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Leaves Ctrl-C to the parent, and ends with it: workers of a parent that is killed would be left waiting."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def silent(done: int, total: int) -> None:
    """Shows no progress."""
