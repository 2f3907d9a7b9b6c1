"""The local engine is a pool of warm processes, one run at a time each, that survives the death of any of them.

On Linux the processes are forked from a server that has imported everything, so importing is paid once.
Every worker has a pipe of its own, because a process killed while it holds a shared queue's lock would stop the others.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from mixerzoo.ablation.running.events import Finished
from mixerzoo.ablation.running.execute import Options
from mixerzoo.ablation.running.store import LOOK_AGAIN, Store, configuration, unwritable
from mixerzoo.ablation.running.worker import Worker
from mixerzoo.tasks import RunConfig
from mixerzoo.tasks.cores import usable_cores

from . import Observe

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PRELOADED = [
    "torch._dynamo",
    "accelerate",
    "mixerzoo.tasks.train",
    "mixerzoo.ablation.running.worker",
    "tensorboard.summary",
]
KILLED = {-signal.SIGKILL: "killed by SIGKILL: by someone, or by the kernel because memory ran out"}


class Elsewhere(NamedTuple):
    """Says that another process, of another runner, is at this run."""

    run_id: str


@dataclass(frozen=True)
class LocalEngine:
    """Does runs side by side on this machine.

    workers: how many processes. The default is one a GPU, or one for as many GPUs as a run has processes; without GPUs
    it is what fits on the cores. threads: of torch in each process, but no more than the cores give to all.

    workers: how many. By default one a GPU, or one for as many GPUs as a run has processes; where there are none, what
    fits on the cores. threads: of torch in each process, but no more than the cores give to all.
    """

    workers: int | None = None
    threads: int = 1
    options: Options = field(default_factory=Options)

    def places(self) -> list[dict[str, str]]:
        """Returns the environment variables of each worker: its share of the cores, and its GPU."""
        gpus, cores, processes = visible_gpus(), usable_cores(), self.options.processes
        if gpus and len(gpus) < processes:
            raise ValueError(f"a run on {processes} processes needs as many GPUs, here are {len(gpus)}")
        shares = [",".join(gpus[n : n + processes]) for n in range(0, len(gpus) - processes + 1, processes)]
        count = self.workers or len(shares) or max(1, cores // (self.threads * processes))
        threads = dict.fromkeys(THREADS, str(max(1, min(self.threads, cores // (count * processes)))))
        devices = [{"CUDA_VISIBLE_DEVICES": share} for share in shares] or [{}]
        return [{**threads, **devices[n % len(devices)]} for n in range(count)]

    def run(self, runs: Iterator[RunConfig], store: Store, observe: Observe) -> None:
        pool = _Pool([_Place(environment) for environment in self.places()], store, self.options, observe)
        try:
            pool.work(runs)
        finally:
            pool.kill()


def warm_up() -> None:
    """Lets the server that workers are forked from begin its imports, while the caller does other work."""
    if _forks():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        with _environment(dict.fromkeys(THREADS, "1")), _interrupts_ignored():
            forkserver.ensure_running()


def visible_gpus() -> list[str]:
    """Returns the GPUs as CUDA_VISIBLE_DEVICES names them."""
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/kfd").exists():
        return []  # without torch's second
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return named[:count] if named[0] else [str(number) for number in range(count)]


@dataclass
class _Place:
    """Carries out one run at a time. Its process is started for the first one."""

    environment: Mapping[str, str]
    process: BaseProcess | None = None
    connection: Connection | None = None
    run: RunConfig | None = None
    since: float = 0.0


class _Pool:
    def __init__(self, places: list[_Place], store: Store, options: Options, observe: Observe) -> None:
        self.places, self.store, self.options, self.observe = places, store, options, observe
        self.elsewhere: dict[str, RunConfig] = {}
        self.released = deque[RunConfig]()

    def work(self, runs: Iterator[RunConfig]) -> None:
        while True:
            self._look_elsewhere()
            for place in self.places:
                if place.run is None and (run := self.released.popleft() if self.released else next(runs, None)):
                    self._assign(place, run)
                elif place.run is None:
                    self._dismiss(place)
            busy = [place for place in self.places if place.run is not None]
            if not (busy or self.elsewhere):
                return
            connections = [place.connection for place in busy if place.connection]
            ready = wait(connections, LOOK_AGAIN if self.elsewhere else None)
            for place in [place for place in busy if place.connection in ready]:
                self._listen(place)

    def kill(self) -> None:
        for place in self.places:
            if place.process is not None:
                place.process.kill()
                place.process.join()

    def _assign(self, place: _Place, run: RunConfig) -> None:
        if place.process is None:
            warm_up()
            context: Any = multiprocessing.get_context("forkserver" if _forks() else "spawn")
            place.connection, theirs = context.Pipe()
            environment = {**os.environ, **place.environment}
            arguments = (theirs, self.store.root, self.options, environment)
            place.process = context.Process(target=serve, args=arguments, daemon=True)
            with _environment(place.environment), _interrupts_ignored():
                place.process.start()
            theirs.close()
        place.run, place.since = run, perf_counter()
        assert place.connection is not None
        with suppress(OSError):  # it died while idle: then its pipe is at its end, and the run is buried with it
            place.connection.send((run.run_id, configuration(run)))

    def _dismiss(self, place: _Place) -> None:
        if place.connection is not None:
            with suppress(OSError):
                place.connection.send(None)
            place.connection.close()
        place.process = place.connection = None

    def _listen(self, place: _Place) -> None:
        assert place.connection is not None and place.run is not None
        try:
            event = place.connection.recv()
        except (EOFError, OSError):
            self._bury(place)
            return
        if isinstance(event, OSError):
            raise event
        if isinstance(event, Elsewhere):
            self.elsewhere[event.run_id] = place.run
            place.run = None
            return
        if isinstance(event, Finished):
            place.run = None
        self.observe(event)

    def _bury(self, place: _Place) -> None:
        """Makes a failed row of the run whose process died, unless it has a result or another runner took it over."""
        from mixerzoo.tasks.provenance import provenance

        assert place.process is not None and place.run is not None
        place.process.join()
        run, code = place.run, place.process.exitcode or 0
        place.process = place.connection = place.run = None
        cause = KILLED.get(code) or (f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")
        error = f"the worker process died ({cause}); log.txt has what it said"
        spent = {"seconds": perf_counter() - place.since, "provenance": provenance(self.options.argv)}
        if self.store.give_up(run, {"status": "failed", "error": error, **spent}):
            self.observe(Finished(run.run_id, self.store.result(run.run_id)))
        else:
            self.elsewhere[run.run_id] = run

    def _look_elsewhere(self) -> None:
        """Looks at runs of other runners: reports those that ended, takes over those that were let go."""
        for run_id, run in list(self.elsewhere.items()):
            with self.store.claim(run_id) as free:
                if not free:
                    continue
            del self.elsewhere[run_id]
            if result := self.store.result(run_id):
                self.observe(Finished(run_id, result))
            else:
                self.released.append(run)


def serve(connection: Connection, root: Path, options: Options, environment: Mapping[str, str]) -> None:
    """Works as a worker until told None, or until the parent is gone and the pipe breaks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()  # the server that this was forked from may have started long ago
    os.environ.update(environment)
    import torch

    torch.set_num_threads(int(environment[THREADS[0]]))
    worker = Worker(root, options)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while (job := connection.recv()) is not None:
            run_id, config = job
            try:
                result = worker.carry_out(run_id, config, connection.send)
            except OSError as error:
                if not unwritable(error):
                    raise
                connection.send(error)
                return
            connection.send(Elsewhere(run_id) if result is None else Finished(run_id, result))


def _forks() -> bool:
    """Returns whether processes can be forked from one that has imported everything, which CUDA rules out."""
    return sys.platform == "linux" and not visible_gpus()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for children started inside: libraries read them when they are loaded."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Makes children started inside inherit, from their first instruction on, that Ctrl-C is for the parent alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
