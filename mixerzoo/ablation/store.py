"""Results on disk: one directory per run, append-only curves, atomic results. A kill at any moment leaves what loads.

    runs/<name>/<run_id>/config.json   the resolved configuration and the data's fingerprint
                         curve.jsonl   one learning-curve point per line, written as it happens; a torn line is dropped
                         log.txt       whatever the run printed, its traceback included
                         result.json   written once, at the end, by renaming: it is there and whole, or not there

A run's status is done, diverged (a result too), failed (tried again on the next call) or unfinished (no result.json).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixerzoo.tasks import RunConfig
from mixerzoo.tasks.files import read_json, to_json, write_atomically

FINISHED = ("done", "diverged")


@dataclass(frozen=True)
class Row:
    """A run as read back: plain data, so that results outlive changes of the configuration classes."""

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
    """The directory of one ablation."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def start(self, run: RunConfig) -> None:
        """Begin a run, or begin it again: what an earlier attempt left behind goes."""
        directory = self.root / run.run_id
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in ("result.json", "curve.jsonl", "log.txt"):
            (directory / leftover).unlink(missing_ok=True)
        write_atomically(directory / "config.json", to_json({**run.to_dict(), "data": run.task.fingerprint}))

    def record(self, run_id: str) -> RunRecord:
        """A run that has been started, to write on."""
        return RunRecord(self.root / run_id)

    def result(self, run_id: str) -> dict[str, Any]:
        """What result.json holds; empty when there is none."""
        return read_json(self.root / run_id / "result.json") or {}

    def finished(self, run_id: str) -> bool:
        return self.result(run_id).get("status") in FINISHED

    def rows(self) -> list[Row]:
        """Every run of the directory in the order of their ids, whatever state it is in."""
        directories = sorted(path.parent for path in self.root.glob("*/config.json"))
        rows = []
        for directory in directories:
            config = read_json(directory / "config.json")
            if config is not None:
                curve = tuple(_read_lines(directory / "curve.jsonl"))
                rows.append(Row(directory.name, config, curve, self.result(directory.name)))
        return rows


class RunRecord:
    """One run being written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def append(self, point: Any) -> None:
        """Add a dataclass to the curve. One write a line: a kill tears at most the last one."""
        with open(self.directory / "curve.jsonl", "ab") as file:
            file.write((to_json(asdict(point), indent=None) + "\n").encode())

    def finish(self, result: Mapping[str, Any]) -> None:
        write_atomically(self.directory / "result.json", to_json(result))


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value
