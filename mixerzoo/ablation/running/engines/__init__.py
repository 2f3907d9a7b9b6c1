"""Engines carry runs out: `local` in processes on this machine, `ray` on a Ray cluster, `slurm` as jobs of Slurm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from mixerzoo.ablation.running.events import Event
from mixerzoo.ablation.running.store import Store
from mixerzoo.tasks import RunConfig

Observe = Callable[[Event], None]


class CannotStart(RuntimeError):
    """Says that there is no cluster to hand runs to, or that it doesn't take what is asked of it."""


class Engine(Protocol):
    """Says how runs are carried out.

    A run is taken from the iterator only when there is a place for it, so the next one may depend on those before.
    Whatever happens to a run is its row; the others go on. Before an exception leaves, KeyboardInterrupt among them,
    everything that the engine started has ended; finished runs stay. An OSError says that the store can't be written.
    """

    def run(self, runs: Iterator[RunConfig], store: Store, observe: Observe) -> None:
        """Carries out every run that isn't finished, and reports to `observe`, in the caller's thread, what happens."""
