"""Keeps results on disk, one directory a run; a kill at any moment leaves what loads.

    runs/<name>/<run_id>/config.json    the resolved configuration and the data's fingerprint
                         curve.jsonl    one learning-curve point per line, written as it happens; a torn line is dropped
                         log.txt        whatever the run printed, its traceback included
                         checkpoint.pt  where an unfinished run resumes; gone when it is finished
                         result.json    written once, at the end, by renaming: it is there and whole, or not there
                         claim          locked by the process that carries the run out
                         stop           there if the run is to end at its next point

A run's status is done, diverged or stopped (given up by a search), which are results; failed or out of memory, which
the next call tries again; or unfinished, which it resumes.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import sleep
from typing import Any

from mixerzoo.tasks import RunConfig
from mixerzoo.tasks.files import read_json, to_json, write_atomically

FINISHED = ("done", "diverged", "stopped")
LEFTOVERS = ("result.json", "curve.jsonl", "log.txt", "events.out.tfevents.*", ".*.json.*", ".checkpoint.pt.*")
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
LEFT_OUT = "left_out.json"  # of a grid: its cells that cannot be, with the reasons
LOOK_AGAIN = 0.5


@dataclass(frozen=True)
class Row:
    """Holds a run as read back: plain data, so that results outlive changes of the configuration classes."""

    run_id: str
    config: Mapping[str, Any]
    curve: tuple[Mapping[str, Any], ...]
    result: Mapping[str, Any]

    @property
    def status(self) -> str:
        return self.result.get("status", "unfinished")

    @property
    def finished(self) -> bool:
        return self.status in FINISHED


class Store:
    """Reads and writes the directory of one ablation. Any number of runners may work in it at the same time."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @contextmanager
    def claim(self, run_id: str, *, patient: bool = False) -> Iterator[bool]:
        """Yields whether this process alone may write on a run while the block lasts. patient: wait until it may.

        The claim is a lock of the operating system: it ends with the process that holds it, kill -9 included.
        """
        import fcntl  # which Windows lacks

        directory = self.root / run_id
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / "claim", "ab") as file:
            os.set_inheritable(file.fileno(), True)  # a run's own processes may outlive this one
            held = _lock(file.fileno(), fcntl)
            while patient and not held:
                sleep(LOOK_AGAIN)
                held = _lock(file.fileno(), fcntl)
            yield held

    def start(self, run: RunConfig) -> None:
        """Begins a run, or resumes it."""
        self.begin(run.run_id, configuration(run))

    def begin(self, run_id: str, config: Mapping[str, Any]) -> None:
        """Begins a run from a configuration read before. Of an earlier attempt only the checkpoint stays."""
        directory = self.root / run_id
        directory.mkdir(parents=True, exist_ok=True)
        for pattern in LEFTOVERS:
            for leftover in directory.glob(pattern):
                leftover.unlink(missing_ok=True)
        write_atomically(directory / "config.json", to_json(config))

    def give_up(self, run: RunConfig, result: Mapping[str, Any]) -> bool:
        """Gives this result to a run whose process died, if it left none.

        Returns False if another process has taken the run over.
        """
        with self.claim(run.run_id) as ours:
            if ours and not self.finished(run.run_id):
                if not (self.root / run.run_id / "config.json").exists():
                    self.start(run)
                self.record(run.run_id).finish(result)
            return ours

    def stop(self, run_id: str) -> None:
        """Asks for a run's end at the next point of its curve, or at its first one."""
        (self.root / run_id).mkdir(parents=True, exist_ok=True)
        (self.root / run_id / "stop").touch()

    def record(self, run_id: str) -> RunRecord:
        """Returns a run that has been started, to write on."""
        return RunRecord(self.root / run_id)

    def result(self, run_id: str) -> dict[str, Any]:
        """Returns what result.json holds; empty when there is none."""
        return self.record(run_id).result

    def finished(self, run_id: str) -> bool:
        return self.result(run_id).get("status") in FINISHED

    def rows(self) -> list[Row]:
        """Returns every run of the directory in the order of their ids, whatever state it is in."""
        rows = []
        for run_id in sorted(os.listdir(self.root)) if self.root.is_dir() else []:
            directory = os.path.join(self.root, run_id)
            config = read_json(directory + "/config.json")
            if config is not None:
                curve = tuple(read_lines(directory + "/curve.jsonl"))
                rows.append(Row(run_id, config, curve, read_json(directory + "/result.json") or {}))
        return rows


class RunRecord:
    """Writes one run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run_id = directory.name

    @property
    def result(self) -> dict[str, Any]:
        """Returns what result.json holds; empty when there is none."""
        return read_json(self.directory / "result.json") or {}

    @property
    def stopped(self) -> bool:
        return (self.directory / "stop").exists()

    def append(self, point: Any) -> None:
        """Adds a dataclass to the curve. One write a line: a kill tears at most the last one."""
        with open(self.directory / "curve.jsonl", "ab") as file:
            file.write((to_json(asdict(point), indent=None) + "\n").encode())

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes the result. A run that didn't get to its end keeps its checkpoint."""
        write_atomically(self.directory / "result.json", to_json(result))
        if result["status"] in FINISHED:
            (self.directory / "checkpoint.pt").unlink(missing_ok=True)


def configuration(run: RunConfig) -> dict[str, Any]:
    """Returns what config.json holds."""
    return {**run.to_dict(), "data": run.task.fingerprint}


def unwritable(error: BaseException) -> bool:
    """Returns whether an error says that nothing can be written: a full or read-only disk, or a quota."""
    return isinstance(error, OSError) and error.errno in UNWRITABLE


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Returns the objects in a file with one a line; what isn't whole is left out."""
    try:
        with open(path, "rb") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    try:
        values = json.loads(b"[" + b",".join(lines) + b"]")  # several times as fast as line by line
    except ValueError:
        values = [_parsed(line) for line in lines]
    return [value for value in values if isinstance(value, dict)]


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _lock(descriptor: int, fcntl: Any) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
