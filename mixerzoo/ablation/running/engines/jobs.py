"""Hands runs to a scheduler as jobs and follows them through the store that they write to.

Ray's and Slurm's engines share this. A job is one call of `carry_out`, on a machine that sees the store's directory and
has this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import sleep
from typing import Any, Protocol

from mixerzoo.ablation.running.events import Finished, Progress, Started
from mixerzoo.ablation.running.execute import Options
from mixerzoo.ablation.running.store import Store, read_lines
from mixerzoo.ablation.running.worker import Worker
from mixerzoo.tasks import RunConfig

from . import Observe

SAID = 400
EXHAUSTED = ("out of memory", "out_of_memory", "outofmemory", "oom-kill", "oom_kill")


class Job(Protocol):
    """Represents a run in a scheduler's hands."""

    def ended(self) -> str | None:
        """Returns None while the job waits or runs; then what went wrong, empty if nothing did."""

    def cancel(self) -> None:
        """Takes the job back, whether it waits or runs."""


Submit = Callable[[Sequence[RunConfig]], Sequence[Job]]


def carry_out(root: Path, run_id: str, config: Mapping[str, Any], options: Options, threads: int) -> None:
    """Does a job's work.

    If its run is still claimed by an earlier attempt that is dying, it waits.
    """
    import torch

    torch.set_num_threads(threads)
    Worker(root, options).carry_out(run_id, config, lambda event: None, patient=True)


def follow(
    runs: Iterator[RunConfig], store: Store, observe: Observe, submit: Submit, places: Callable[[], int], every: float
) -> None:
    """Hands runs over while there are places, and reports what becomes of them, looking every few seconds."""
    followed: list[_Followed] = []
    exhausted = False
    try:
        while not exhausted or followed:
            room = 0 if exhausted else max(0, places() - len(followed))
            batch = list(islice(runs, room))
            exhausted = exhausted or len(batch) < room
            for run in batch:
                _prepare(run, store)
            if batch:
                followed += [_Followed(run, job) for run, job in zip(batch, submit(batch), strict=True)]
            followed = [one for one in followed if not one.tell_news(store, observe)]
            if followed:
                sleep(every)
    except BaseException:
        for one in followed:
            one.job.cancel()
        raise


def _prepare(run: RunConfig, store: Store) -> None:
    """Clears what an earlier attempt left, which would be taken for news."""
    with store.claim(run.run_id) as ours:
        if ours and not store.finished(run.run_id):
            store.start(run)


@dataclass
class _Followed:
    run: RunConfig
    job: Job
    started: bool = False
    told: int = 0

    def tell_news(self, store: Store, observe: Observe) -> bool:
        """Reports what is new, and returns whether that was the last."""
        run_id, directory = self.run.run_id, store.root / self.run.run_id
        ended = self.job.ended()  # before the files are read, for what it wrote last must be among them
        if not self.started and (directory / "log.txt").exists():
            self.started = True
            observe(Started(run_id))
        for point in read_lines(directory / "curve.jsonl")[self.told :]:
            self.told += 1
            observe(Progress.of(run_id, point))
        if ended is not None and not store.result(run_id):
            said = " ".join(ended.split())[-SAID:] or "nothing"
            status = "out of memory" if any(word in ended.lower() for word in EXHAUSTED) else "failed"
            store.give_up(self.run, {"status": status, "error": f"the job ended without a result; it said: {said}"})
        if result := store.result(run_id):
            observe(Finished(run_id, result))
        return bool(result)
