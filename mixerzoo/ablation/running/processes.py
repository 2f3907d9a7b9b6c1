"""Spreads a run over several processes, one a GPU or on the cores: Accelerate joins them, and the first one writes."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import sleep
from typing import Any

from mixerzoo.tasks import RunConfig
from mixerzoo.tasks.files import to_json

from .events import Progress
from .execute import Options, execute
from .store import RunRecord, read_lines

LOOK = 0.2
SAID = 2000
PARENT_DEATH_SIGNAL = 1  # of prctl(2)


def launch(run: RunConfig, record: RunRecord, report: Callable[[Progress], None], options: Options) -> dict[str, Any]:
    """Carries a run out on `options.processes` processes, reports its points, and returns its result.

    Raises RuntimeError with the end of their output if one of them fails.
    """
    arguments = [str(record.directory), to_json(run.to_dict()), to_json(asdict(options))]
    command = [sys.executable, "-m", "mixerzoo.ablation.running.processes", *arguments]
    processes = [
        subprocess.Popen(command, env={**os.environ, **place}, close_fds=False) for place in _places(options.processes)
    ]
    told = 0
    try:
        while True:
            codes = [process.poll() for process in processes]  # before the curve is read, for its last points
            for point in read_lines(record.directory / "curve.jsonl")[told:]:
                told += 1
                report(Progress.of(record.run_id, point))
            if any(codes):
                said = (record.directory / "log.txt").read_bytes()[-SAID:].decode(errors="replace")
                raise RuntimeError(f"one of its {options.processes} processes failed, the last words are: {said}")
            if None not in codes:
                return record.result
            sleep(LOOK)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main(directory: str, config: str, options: str) -> None:
    """Does the work of one of the processes."""
    if sys.platform == "linux":  # no one of them is to write on when the run has been given to others
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    from accelerate.state import PartialState

    run, record = RunConfig.from_dict(json.loads(config)), RunRecord(Path(directory))
    result = execute(run, record, lambda event: None, Options(**json.loads(options)))
    if PartialState().is_main_process:
        record.finish(result)
    PartialState().destroy_process_group()


def _places(count: int) -> list[dict[str, str]]:
    """Returns what torch.distributed reads in each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


if __name__ == "__main__":
    main(*sys.argv[1:])
