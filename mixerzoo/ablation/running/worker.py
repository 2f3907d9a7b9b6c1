"""Carries one run out, in whatever process an engine has started for it, from its claim to its result."""

from __future__ import annotations

import faulthandler
import gc
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from mixerzoo.tasks import RunConfig, Task

from .events import Started
from .execute import Options, Report, execute
from .store import RunRecord, Store, unwritable


class Worker:
    """Keeps what a process needs between runs: equal tasks are one object, so their data are read and hashed once."""

    def __init__(self, root: str | Path, options: Options) -> None:
        self.store, self.options = Store(root), options
        self._tasks: dict[Task, Task] = {}

    def carry_out(
        self, run_id: str, config: Mapping[str, Any], report: Report, *, patient: bool = False
    ) -> dict[str, Any] | None:
        """Returns a run's result, known or made now; None if another process is at it, for which `patient` waits.

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
        from .processes import launch

        return (execute if self.options.processes == 1 else launch)(run, record, report, self.options)

    def _read(self, config: Mapping[str, Any], run_id: str) -> RunConfig:
        run = RunConfig.from_dict({part: value for part, value in config.items() if part != "data"})
        run = replace(run, task=self._tasks.setdefault(run.task, run.task))
        if run.run_id != run_id:
            raise RuntimeError(f"configuration or data changed since the grid was made: now {run.run_id}")
        return run


def failure(error: BaseException) -> dict[str, Any]:
    """Returns the result of a run that raised."""
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
    """Sends this process's output, crash reports of the interpreter included, to a file while the block lasts."""
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
