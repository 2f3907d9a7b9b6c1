"""A worker process: takes run configurations from a pipe, trains them one after the other, reports on the way.

It stays alive between runs, so torch is imported once. Results go to the store from here, not through the pipe.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from mixerzoo.tasks import RunConfig

from .store import RunRecord, Store

STATE_LENGTH = 1024


class Progress(NamedTuple):
    """A run is under way."""

    run_id: str
    step: int
    loss: float
    metric: float | None
    tokens_per_second: float
    seconds: float


class Finished(NamedTuple):
    """A run has come to its end; `result` is what its result.json holds."""

    run_id: str
    result: Mapping[str, Any]


def execute(run: RunConfig, record: RunRecord, report: Callable[[Progress], None], argv: list[str]) -> dict[str, Any]:
    """Train one run in this process and return its result. The seed decides the weights; data have their own stream."""
    import torch

    from mixerzoo.tasks.provenance import provenance
    from mixerzoo.tasks.train import fit

    started = perf_counter()
    torch.manual_seed(run.seed)
    model = run.task.build_model(run.backbone)
    points = []
    for point in fit(model, run.task, run.train, seed=run.seed):
        record.append(point)
        points.append(point)
        report(Progress(run.run_id, point.step, point.loss, point.metric, point.tokens / point.seconds, point.seconds))
    last = points[-1]
    return {
        "status": "diverged" if last.diverged else "done",
        "metric": asdict(run.task.metric),
        "value": None if last.diverged else last.metric,
        "loss": last.loss,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "state_bytes": 4 * run.task.state_size(model, STATE_LENGTH),
        "steps": last.step,
        "tokens": last.tokens,
        "tokens_per_second": last.tokens / last.seconds,
        "seconds": perf_counter() - started,
        "measurements": asdict(run.task.measure(model, run.backbone)),
        "provenance": provenance(argv),
    }


def serve(connection: Connection, root: Path, threads: int, argv: list[str]) -> None:
    """A worker's life: ends when told None, or when the parent is gone and the pipe breaks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(threads)
    store = Store(root)
    while True:
        try:
            job = connection.recv()
            if job is None:
                return
            run_id, values = job
            result = _run(run_id, values, store.record(run_id), connection.send, argv)
            connection.send(Finished(run_id, result))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def _run(
    run_id: str,
    values: Mapping[str, Any],
    record: RunRecord,
    report: Callable[[Progress], None],
    argv: list[str],
) -> dict[str, Any]:
    started = perf_counter()
    _log_to(record.directory / "log.txt")
    try:
        run = RunConfig.from_dict(values)
        if run.run_id != run_id:
            raise RuntimeError(f"configuration or data changed since the grid was made: now {run.run_id}")
        result = execute(run, record, report, argv)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        traceback.print_exc()
        text = " ".join(str(error).split())
        result = {"status": "failed", "error": f"{type(error).__name__}: {text}", "seconds": perf_counter() - started}
    sys.stdout.flush()
    sys.stderr.flush()
    record.finish(result)
    return result


def _log_to(path: Path) -> None:
    """Send this process's output, crash reports of the interpreter included, to a file."""
    with open(path, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable(file=2)
