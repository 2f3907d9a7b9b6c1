"""The Slurm engine makes array jobs through submitit, which also resumes them after a time limit or a preemption."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit
from submitit.helpers import DelayedSubmission

from mixerzoo.ablation.running.execute import Options
from mixerzoo.ablation.running.store import Store, configuration
from mixerzoo.tasks import RunConfig

from . import CannotStart, Observe
from .jobs import Job, carry_out, follow

DAY = 24 * 60
CUT_OFF = 1000  # times, for each goes on from a checkpoint


@dataclass(frozen=True)
class SlurmEngine:
    """Makes a job for every run.

    All nodes must see the store's directory; scripts and outputs go to `jobs` in it.

    parameters: submitit's, for every job: timeout_min (a day), mem_gb, gpus_per_node, slurm_partition, ...
    jobs: how many may wait or run at once; all by default, as one array. threads: of each process of a run. cluster:
    submitit's "slurm", or "local" for processes here, to try it out. every: seconds between two looks at what became
    of them.
    """

    parameters: Mapping[str, Any] = field(default_factory=dict)
    jobs: int | None = None
    threads: int = 1
    cluster: str = "slurm"
    every: float = 2.0
    options: Options = field(default_factory=Options)

    def run(self, runs: Iterator[RunConfig], store: Store, observe: Observe) -> None:
        """Submits the runs.

        Raises CannotStart where there is no Slurm, and for a parameter that submitit doesn't know.
        """
        root = store.root.resolve()
        try:
            executor = submitit.AutoExecutor(folder=root / "jobs", cluster=self.cluster, slurm_max_num_timeout=CUT_OFF)
            parameters = {"timeout_min": DAY, **self.parameters}
            cores = self.threads * self.options.processes
            executor.update_parameters(name=root.name, cpus_per_task=cores, **parameters)
        except (RuntimeError, NameError, ValueError) as error:
            said = " ".join(str(error).split())
            raise CannotStart(f"Slurm takes no jobs: {said}; remedy: a login node, and --job by its names") from error

        def submit(batch: Sequence[RunConfig]) -> Sequence[Job]:
            with executor.batch():
                jobs = [
                    executor.submit(Resumable(root, run.run_id, configuration(run), self.options, self.threads))
                    for run in batch
                ]
            return [_SlurmJob(job) for job in jobs]

        follow(runs, store, observe, submit, lambda: self.jobs or sys.maxsize, self.every)


@dataclass
class Resumable:
    """Represents a run as submitit calls it, again after its job was cut off: its own checkpoint does the rest."""

    root: Path
    run_id: str
    config: Mapping[str, Any]
    options: Options
    threads: int

    def __call__(self) -> None:
        carry_out(self.root, self.run_id, self.config, self.options, self.threads)

    def checkpoint(self) -> DelayedSubmission:
        return DelayedSubmission(self)


@dataclass
class _SlurmJob:
    job: submitit.Job[None]

    def ended(self) -> str | None:
        if not self.job.done():
            return None
        error = self.job.exception()
        return "" if error is None else f"{self.job.state}: {error}"

    def cancel(self) -> None:
        self.job.cancel()
