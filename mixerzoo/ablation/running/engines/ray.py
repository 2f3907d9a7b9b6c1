"""The Ray engine starts a task for every run on a cluster that is already there; queues and retries are Ray's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from mixerzoo.ablation.running.execute import Options
from mixerzoo.ablation.running.store import Store, configuration
from mixerzoo.tasks import RunConfig

from . import CannotStart, Observe
from .jobs import Job, carry_out, follow


@dataclass(frozen=True)
class RayEngine:
    """Does as many runs at once as the cluster has room for. All nodes must see the store's directory.

    address: of the cluster, as `ray.init` takes it. threads: of each process of a run. gpus: of one run. jobs: how many
    may run at once; by default all that there is room for. retries: how often Ray restarts a run whose process or node
    has died; it resumes from its checkpoint. every: seconds between two looks.
    """

    address: str = "auto"
    threads: int = 1
    gpus: float = 0
    jobs: int | None = None
    retries: int = 3
    every: float = 1.0
    options: Options = field(default_factory=Options)

    def run(self, runs: Iterator[RunConfig], store: Store, observe: Observe) -> None:
        """Hands the runs to the cluster. Raises CannotStart where no cluster answers."""
        root, joined = store.root.resolve(), not ray.is_initialized()
        if joined:
            try:
                ray.init(address=self.address, log_to_driver=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                said = " ".join(str(error).split())
                raise CannotStart(f"no Ray cluster answers at {self.address!r}: {said}; remedy: --address") from error
        task = ray.remote(num_cpus=self.cores, num_gpus=self.gpus, max_retries=self.retries)(carry_out)

        def submit(batch: Sequence[RunConfig]) -> Sequence[Job]:
            return [
                _RayJob(task.remote(root, run.run_id, configuration(run), self.options, self.threads)) for run in batch
            ]

        try:
            follow(runs, store, observe, submit, self.places, self.every)
        finally:
            if joined:
                ray.shutdown()

    @property
    def cores(self) -> int:
        """Returns the cores of one run."""
        return self.threads * self.options.processes

    def places(self) -> int:
        """Returns how many runs the cluster's nodes can take at once, as many as it has now."""
        resources = ray.cluster_resources()
        counts = [resources.get("CPU", 0) // self.cores, *([self.jobs] if self.jobs else [])]
        if self.gpus:
            counts.append(resources.get("GPU", 0) // self.gpus)
        return max(1, int(min(counts)))


@dataclass
class _RayJob:
    reference: Any

    def ended(self) -> str | None:
        ready, _ = ray.wait([self.reference], timeout=0)
        if not ready:
            return None
        try:
            ray.get(self.reference)
        except ray.exceptions.RayError as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def cancel(self) -> None:
        ray.cancel(self.reference, force=True)
