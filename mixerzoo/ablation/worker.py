"""Carrying one run out, in whatever process an engine has started for it, from its claim to its result."""

from __future__ import annotations

import faulthandler
import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from mixerzoo.tasks import RunConfig, Task

from .events import Progress, Started
from .store import RunRecord, Store, unwritable

STATE_LENGTH = 1024

Report = Callable[["Started | Progress"], None]


@dataclass(frozen=True)
class Options:
    """How runs are carried out, whatever the engine.

    argv: the command line that asked for them. retry_out_of_memory: go on with micro-batches half the size, as often as
    it takes. checkpoint_every: seconds, at the least. trackers: of `trackers.py`, besides TensorBoard. processes: that
    share the batches of a run; memory and energy in its row are the first one's.
    """

    argv: tuple[str, ...] = field(default_factory=lambda: tuple(sys.argv))
    retry_out_of_memory: bool = False
    checkpoint_every: float = 30.0
    trackers: tuple[str, ...] = ()
    processes: int = 1


class Worker:
    """What a process keeps between runs: equal tasks are one object, so their data are read and hashed once."""

    def __init__(self, root: str | Path, options: Options) -> None:
        self.store, self.options = Store(root), options
        self._tasks: dict[Task, Task] = {}

    def carry_out(
        self, run_id: str, config: Mapping[str, Any], report: Report, *, patient: bool = False
    ) -> dict[str, Any] | None:
        """A run's result, known or made now; None if another process is at it, for which `patient` waits.

        config: what config.json is to hold. Whatever goes wrong in the run is its result. An OSError that passes says
        that the store can't be written.
        """
        with self.store.claim(run_id, patient=patient) as ours:
            if not ours:
                return None
            if self.store.finished(run_id):
                return self.store.result(run_id)
            self.store.begin(run_id, config)
            record = self.store.record(run_id)
            report(Started(run_id))
            with logging_to(record.directory / "log.txt"):
                result = self._attempt(config, record, report)
            record.finish(result)
            return result

    def _attempt(self, config: Mapping[str, Any], record: RunRecord, report: Report) -> dict[str, Any]:
        from mixerzoo.tasks.provenance import provenance

        batch, parts, notes, started = 0, 0, list[str](), perf_counter()
        while True:
            try:
                run = self._read(config, record.run_id)
                batch, parts = run.train.batch_size, parts or run.train.accumulate
                shrunk = replace(run, train=replace(run.train, accumulate=parts))
                return {**self._execute(shrunk, record, report), "notes": notes}
            except (BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:
                if unwritable(error):
                    raise
                traceback.print_exc()
                origin = provenance(self.options.argv)
                spent = {"seconds": perf_counter() - started, "notes": notes, "provenance": origin}
                result = {**failure(error), **spent}
            if result["status"] != "out of memory" or not self.options.retry_out_of_memory or parts == batch:
                return result
            parts = min(2 * parts, batch)
            notes = [f"out of memory at batch {batch}; ran as {parts} x {-(-batch // parts)}"]
            free_memory()

    def _execute(self, run: RunConfig, record: RunRecord, report: Report) -> dict[str, Any]:
        from .launch import launch

        return (execute if self.options.processes == 1 else launch)(run, record, report, self.options)

    def _read(self, config: Mapping[str, Any], run_id: str) -> RunConfig:
        run = RunConfig.from_dict({part: value for part, value in config.items() if part != "data"})
        run = replace(run, task=self._tasks.setdefault(run.task, run.task))
        if run.run_id != run_id:
            raise RuntimeError(f"configuration or data changed since the grid was made: now {run.run_id}")
        return run


def execute(run: RunConfig, record: RunRecord, report: Report, options: Options | None = None) -> dict[str, Any]:
    """Train one run in this process and return its result. The seed decides the weights; data have their own stream."""
    import torch
    from accelerate.state import PartialState
    from accelerate.utils import broadcast_object_list

    from mixerzoo.tasks.base import Measurements
    from mixerzoo.tasks.checkpoint import Checkpoint
    from mixerzoo.tasks.meter import Meter
    from mixerzoo.tasks.provenance import provenance
    from mixerzoo.tasks.train import evaluate, fit

    from .trackers import tracking

    meter, task, options = Meter(), run.task, options or Options()
    state = PartialState(cpu=not torch.accelerator.is_available())
    torch.manual_seed(run.seed)
    model = task.build_model(run.backbone)
    if state.process_index:
        torch.manual_seed(run.seed + state.process_index)  # dropout differs between processes, weights don't
    checkpoint = Checkpoint(record.directory / "checkpoint.pt", options.checkpoint_every, {"meter": meter})
    points, status = [], "done"
    with tracking(options.trackers, run, record) as track:
        for point in fit(model, task, run.train, seed=run.seed, checkpoint=checkpoint):
            points.append(point)
            if state.is_main_process:
                record.append(point)
                track(point)
                report(Progress.of(record.run_id, asdict(point)))
            if point.step < run.train.steps and broadcast_object_list([record.stopped])[0]:
                status = "stopped"
                break
    last = points[-1]
    status = "diverged" if last.diverged else status
    split = task.test_split or "valid"
    valid = next((point.metric for point in reversed(points) if point.metric is not None), None)
    value, measured = None, Measurements()
    if status == "done":
        value = evaluate(model, task, run.train, split) if split != "valid" else valid
        measured = task.measure(model, run.backbone)
    tokens, flops = task.cost(model)
    return {
        "status": status,
        "metric": asdict(task.metric),
        "value": value,
        "split": split,
        "valid": None if last.diverged else valid,
        "loss": last.loss,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "state_bytes": 4 * task.state_size(model, STATE_LENGTH),
        "flops_per_token": flops / tokens,
        "steps": last.step,
        "tokens": last.tokens,
        "tokens_per_second": last.tokens / last.seconds,
        **meter.read(),
        "measurements": asdict(measured),
        "provenance": provenance(options.argv),
    }


def failure(error: BaseException) -> dict[str, Any]:
    """The result of a run that raised."""
    import torch

    text = " ".join(str(error).split())
    exhausted = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )
    return {"status": "out of memory" if exhausted else "failed", "error": f"{type(error).__name__}: {text}"}


def free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """This process's output, crash reports of the interpreter included, goes to a file while the block lasts."""
    kept = [os.dup(1), os.dup(2)]
    try:
        with open(path, "ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        faulthandler.enable(file=2)
        yield
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        for descriptor, own in zip(kept, (1, 2), strict=True):
            os.dup2(descriptor, own)
            os.close(descriptor)
