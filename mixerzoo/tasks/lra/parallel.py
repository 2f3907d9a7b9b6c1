"""Chunks of work on several cores, their results in order, so that what comes out doesn't depend on the cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

T = TypeVar("T")
Progress = Callable[[int, int], None]


def in_order(make: Callable[[int], T], first: int, last: int, workers: int | None) -> Iterator[T]:
    """`make(i)` for i from `first` up to but without `last`; `workers` processes, by default one a usable core.

    `make` must be importable, a module's function or a `functools.partial` of one.
    """
    workers = min(workers or usable_cores(), last - first)
    if workers <= 1:
        yield from map(make, range(first, last))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(make, range(first, last))
        finally:
            pool.shutdown(cancel_futures=True)


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def silent(done: int, total: int) -> None:
    """A progress that shows nothing."""
