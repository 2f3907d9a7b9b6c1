"""The local engine: a pool of warm processes, one run at a time each, that survives the death of any of them.

Every worker has a pipe of its own, because a process killed while it holds a shared queue's lock would stop the others.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from time import perf_counter
from typing import NamedTuple

from mixerzoo.tasks import RunConfig

from .store import Store
from .worker import Finished, Progress, serve


class Started(NamedTuple):
    """A run has been given to a worker."""

    run_id: str


Event = Started | Progress | Finished


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    run: RunConfig | None = None
    since: float = field(default_factory=perf_counter)


def run_pool(
    runs: Sequence[RunConfig],
    store: Store,
    observe: Callable[[Event], None],
    *,
    workers: int,
    threads: int = 1,
) -> None:
    """Carry out every run and tell `observe` what happens.

    A run that raises, or whose process dies, becomes a failed row and the others go on. An exception here,
    KeyboardInterrupt among them, ends the workers; what is finished stays finished.
    """
    waiting = deque(runs)
    pool: list[_Worker] = []
    try:
        while waiting or pool:
            while waiting and len(pool) < workers:
                pool.append(_spawn(store, threads))
            for worker in pool:
                if worker.run is None and waiting:
                    _assign(worker, waiting.popleft(), store, observe)
            for worker in [worker for worker in pool if worker.run is None]:
                _dismiss(worker)
                pool.remove(worker)
            ready = wait([worker.connection for worker in pool]) if pool else []
            for worker in [worker for worker in pool if worker.connection in ready]:
                try:
                    event = worker.connection.recv()
                except (EOFError, OSError):
                    pool.remove(worker)
                    observe(_bury(worker, store))
                    continue
                observe(event)
                if isinstance(event, Finished):
                    worker.run = None
    finally:
        for worker in pool:
            worker.process.kill()
            worker.process.join()


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _spawn(store: Store, threads: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, store.root, threads, sys.argv), daemon=True)
    with _interrupts_ignored():
        process.start()
    theirs.close()
    return _Worker(process, ours)


def _assign(worker: _Worker, run: RunConfig, store: Store, observe: Callable[[Event], None]) -> None:
    store.start(run)
    worker.run, worker.since = run, perf_counter()
    observe(Started(run.run_id))
    with suppress(OSError):  # it died while idle: then its pipe is at its end, and the run is buried with it
        worker.connection.send((run.run_id, run.to_dict()))


def _dismiss(worker: _Worker) -> None:
    with suppress(OSError):
        worker.connection.send(None)
    worker.connection.close()


def _bury(worker: _Worker, store: Store) -> Finished:
    """Make a failed row of the run whose process died, unless its result was already written."""
    worker.process.join()
    assert worker.run is not None
    run_id, code = worker.run.run_id, worker.process.exitcode or 0
    if not store.finished(run_id):
        cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        error = f"the worker process died ({cause}); log.txt has what it said"
        seconds = perf_counter() - worker.since
        store.record(run_id).finish({"status": "failed", "error": error, "seconds": seconds})
    return Finished(run_id, store.result(run_id))


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Children started inside inherit that Ctrl-C is for the parent alone, from their first instruction on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
