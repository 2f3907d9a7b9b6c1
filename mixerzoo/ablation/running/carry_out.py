"""Carries a plan out in a store: missing runs are done, and a search's choices follow its trials."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mixerzoo.ablation.question.plan import Plan
from mixerzoo.tasks import RunConfig
from mixerzoo.tasks.files import read_json, to_json, write_atomically

from .engines import Engine, Observe
from .events import Event, Planned
from .store import LEFT_OUT, Store
from .trials import HalvingSearch, chosen_runs, known_trials


def carry_out(planned: Plan, store: Store, engine: Engine, observe: Observe) -> bool:
    """Does every run that isn't finished, and after a search the further seeds with what was chosen.

    Returns False if there was nothing to do and the question is the one before. The question stands in the store's
    grid.json from the start, and what was left out in left_out.json. Raises OSError if the store cannot be written.

    False if there was nothing to do and the question is the one before. It stands in the store's grid.json from the
    start, and what had to be left out in left_out.json. Raises OSError if the store cannot be written.
    """
    store.root.mkdir(parents=True, exist_ok=True)
    left_out = {"cells": [cell._asdict() for cell in planned.left_out]}
    changed = _keep(store.root / "grid.json", planned.grid.to_dict())
    if planned.left_out or (store.root / LEFT_OUT).exists():
        changed |= _keep(store.root / LEFT_OUT, left_out)
    search = planned.grid.search

    def announced(runs: Iterable[RunConfig]) -> Iterator[RunConfig]:
        nonlocal changed
        for run in runs:
            if not store.finished(run.run_id):
                changed = True
                observe(Planned(run.run_id, run))
                yield run

    if search is not None and search.method == "asha":
        halving = HalvingSearch(planned.runs, search, store)

        def listen(event: Event) -> None:
            halving.hear(event)
            observe(event)

        engine.run(announced(halving.runs()), store, listen)
    else:
        engine.run(announced(planned.trials), store, observe)
    if search is not None:
        engine.run(announced(chosen_runs(planned.runs, search, store.rows())), store, observe)
    return changed


def _keep(path: Path, value: Any) -> bool:
    """Writes a value as JSON unless the file holds it already, and returns whether it did."""
    changed = read_json(path) != json.loads(to_json(value))
    if changed:
        write_atomically(path, to_json(value))
    return changed


def expected(planned: Plan, store: Store) -> tuple[int, int]:
    """Returns how many runs are to be done, and about how many steps in all.

    A search gives some runs up, and chooses others.
    """
    search, (ended, known) = planned.grid.search, finished(planned, store)
    runs = known - ended
    if search is not None and (runs or not known):
        if planned.trials:
            runs = sum(not store.finished(run.run_id) for run in planned.trials)
        else:
            rows = [row for row in store.rows() if row.finished]
            drawn = sum(len(known_trials(run, search, rows)) for run in planned.priced)
            runs = max(0, search.trials_per_arm * planned.arms - drawn)
        runs += planned.later
    return runs, runs * sum(run.train.steps for run in planned.runs) // len(planned.runs)


def finished(planned: Plan, store: Store) -> tuple[int, int]:
    """Returns how many of the known runs have ended, and how many are known."""
    known = _known(planned, store)
    return sum(store.finished(run.run_id) for run in known), len(known)


def _known(planned: Plan, store: Store) -> list[RunConfig]:
    search = planned.grid.search
    if search is None:
        return list(planned.runs)
    runs = [*planned.trials, *chosen_runs(planned.runs, search, store.rows())]
    return list({run.run_id: run for run in runs}.values())
