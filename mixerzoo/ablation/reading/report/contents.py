"""Gathers what a report speaks of: runs that were read, filtered and grouped into arms, and sections by task.

An arm of a search is what it chose; the other trials only stand in the figures of the search.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mixerzoo.ablation.reading.arms import Arm, arms
from mixerzoo.ablation.reading.baseline import comparisons
from mixerzoo.ablation.reading.columns import FOLDER, check_paths, columns, heading, select
from mixerzoo.ablation.reading.fairness import warnings
from mixerzoo.ablation.reading.statistics import Comparison, coverage_of_the_range
from mixerzoo.ablation.running.choice import Choice, choose
from mixerzoo.ablation.running.store import LEFT_OUT, Row, Store
from mixerzoo.registry.registry import unknown
from mixerzoo.tasks.base import file_name
from mixerzoo.tasks.config import canonical, flatten
from mixerzoo.tasks.files import read_json

from .missing import apart, axes_of, missing

RUN = {"task", "backbone", "train", "seed"}  # what tells a run from a checkpoint or another folder with a config.json
SELECTION = "selection"
FEW_SEEDS = 5  # with fewer, an interval cannot be as wide as it should


@dataclass(frozen=True)
class Section:
    """Holds one task's part of a report.

    trials: its runs as arms of their own, also those that a search passed over.
    """

    task: str
    arms: tuple[Arm, ...]
    trials: tuple[Arm, ...]
    choices: tuple[Choice, ...]
    baseline: str | None
    missing: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)  # what could not be, and the reason

    @property
    def metric(self) -> Mapping[str, Any]:
        return next((arm.metric for arm in self.arms if arm.metric), {})

    @cached_property
    def best(self) -> set[str]:
        """Returns the labels of what is in first place, on every variant of the task."""
        means: dict[str, float | None] = {}
        for arm in self.arms:  # best first
            means.setdefault(arm.task_label, arm.mean)
        return {arm.label for arm in self.arms if arm.values and arm.mean == means[arm.task_label]}

    @cached_property
    def split(self) -> str:
        """Returns the split that the values are of; empty for rows that don't say, and where they differ."""
        splits = {row.result.get("split", "") for arm in self.arms for row in arm.done}
        return splits.pop() if len(splits) == 1 else ""

    @cached_property
    def comparisons(self) -> dict[str, Comparison]:
        """Returns the comparisons with the baseline, by the labels of the arms that have one."""
        return comparisons(self.arms, self.baseline) if self.baseline else {}

    @cached_property
    def problems(self) -> list[str]:
        """Returns a sentence for every run without a value; seeds that went the same way share one."""
        groups = defaultdict(list)
        for arm in self.trials:
            for row in arm.lost:
                groups[arm.label, row.status, _detail(row)].append(row.config["seed"])
        told = [
            f"{self.task} {label} seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}: {status} ({detail})"
            for (label, status, detail), seeds in groups.items()
        ]
        told += [f"{self.task} {what}: left out ({reason})" for what, reason in self.left_out.items()]
        return told + [f"{self.task} {what}: missing (not started)" for what in self.missing]

    @cached_property
    def warnings(self) -> list[str]:
        """Returns sentences on where the comparison is not fair, or not sure."""
        return warnings(self.arms, self.choices)

    @cached_property
    def notes(self) -> list[str]:
        """Returns sentences on how the numbers arose."""
        rows = [row for arm in self.arms for row in arm.rows]
        notes = [row.result.get("measurements", {}).get("note") for row in rows]
        notes += [
            f"{arm.label}: {note}" for arm in self.arms for row in arm.rows for note in row.result.get("notes", [])
        ]
        stopped = sum(row.status == "stopped" for arm in self.trials for row in arm.rows)
        if stopped:
            notes.append(f"The search gave up {stopped} of {sum(len(arm.rows) for arm in self.trials)} runs early.")
        seeds = [len(arm.values) for arm in self.arms if len(arm.values) > 1]
        if seeds and min(seeds) < FEW_SEEDS:
            notes.append(
                f"An interval of {min(seeds)} seeds is at most their range, which holds the true mean in "
                f"{100 * coverage_of_the_range(min(seeds)):.0f} % of cases, not in 95 %."
            )
        return list(dict.fromkeys(filter(None, notes)))


@dataclass(frozen=True)
class Report:
    """Holds everything that is shown. `rows` are all runs that the filters left, `arms` what the tables compare.

    directory: where its files go. It is the runs' own, a folder in it for a part of them, or, of several directories,
    one beside the first.
    """

    directory: Path
    title: str
    question: str
    rows: tuple[Row, ...]
    arms: tuple[Arm, ...]
    sections: tuple[Section, ...]
    tuned: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    by: tuple[str, ...] = ()

    @property
    def pooled(self) -> str:
        """Returns what a filter and a regrouping have made of the runs, as a sentence; empty without them."""
        parts = [f"only runs with {' and '.join(self.where)}; what is missing is not counted"] * bool(self.where)
        parts += [f"grouped by {', '.join(map(heading, self.by))} alone, pooling whatever else differs"] * bool(self.by)
        return f"Shown: {'; '.join(parts)}." if parts else ""

    @cached_property
    def statuses(self) -> Counter[str]:
        return Counter(row.status for row in self.rows)


def read_report(
    *stores: Store, where: Iterable[str] = (), by: Iterable[str] = (), baseline: str | None = None
) -> Report:
    """Reads the runs of one or more directories.

    Where there are several, the folder is one more setting.

    where: conditions, all of which a run must meet: `train.lr=3e-3`, `mixer=gla,hgrn2`, `seed<2`. by: dotted paths to
    group by instead of everything but the seed. baseline: a mixer or an arm's label, to compare the others with.
    Raises ValueError for directories without runs, for unknown paths and baselines, and for filters that leave nothing.
    """
    titles = _names([store.root for store in stores])
    rows: list[Row] = []
    for store, title in zip(stores, titles, strict=True):
        own = [row for row in store.rows() if row.config.keys() >= RUN]
        if not own:
            raise ValueError(
                f"there are no runs in {store.root}; remedy: a directory that `mixerzoo ablate` has written"
            )
        rows += [replace(row, config={FOLDER: title, **row.config}) for row in own] if len(stores) > 1 else own
    questions = [read_json(store.root / "grid.json") or {} for store in stores]
    where, paths = tuple(where), tuple(map(canonical, by))
    rows = select(rows, where)
    if paths:
        check_paths(paths, [columns(row) for row in rows])
    tuned = (
        ()
        if paths
        else tuple(dict.fromkeys(canonical(path) for q in questions for path in flatten(q.get("tune") or {})))
    )
    follow = [path for q in questions for axis in axes_of(q) for path in axis.paths[1:]]
    choices = choose(rows, tuned) if tuned else []
    shown = [row for choice in choices for row in _shown(choice)] if tuned else rows
    compared = arms(shown, by=paths, tuned=tuned, follow=follow)
    trials = arms(rows, by=paths, follow=follow) if tuned else compared
    if baseline is not None:
        _check_baseline(baseline, compared)
    baseline = baseline or next((q["baseline"] for q in questions if q.get("baseline")), None)
    absent = missing(questions[0], rows) if len(stores) == 1 and not where else {}
    left_out, not_started = apart(absent, read_json(stores[0].root / LEFT_OUT) or {})
    question = next((q["question"] for q in questions if q.get("question")), "")
    sections = [
        Section(
            task,
            tuple(arm for arm in compared if arm.task == task),
            tuple(arm for arm in trials if arm.task == task),
            tuple(choice for choice in choices if choice.candidates[0].rows[0].config["task"]["name"] == task),
            baseline,
            tuple(not_started.get(task, ())),
            left_out.get(task, {}),
        )
        for task in dict.fromkeys([*(arm.task for arm in compared), *absent])
    ]
    home = stores[0].root / SELECTION if where or paths else stores[0].root
    directory = home if len(stores) == 1 else stores[0].root.parent / "-vs-".join(map(file_name, titles))
    return Report(
        directory, " and ".join(titles), question, tuple(rows), tuple(compared), tuple(sections), tuned, where, paths
    )


def _shown(choice: Choice) -> Iterable[Row]:
    """Returns what was chosen; every trial where nothing could be, so that what went wrong is seen."""
    if choice.best is not None:
        return choice.best.rows
    return (row for candidate in choice.candidates for row in candidate.rows)


def _names(roots: Sequence[Path]) -> list[str]:
    """Returns as much of the end of every path as tells them apart."""
    parts = [root.resolve().parts for root in roots]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"a directory cannot be compared with itself, got {', '.join(map(str, roots))}")


def _check_baseline(baseline: str, compared: Sequence[Arm]) -> None:
    known = {name for arm in compared for name in (arm.mixer, arm.label, arm.model_label)}
    if baseline not in known:
        raise ValueError(unknown("baseline", baseline, sorted(known)))


def _detail(row: Row) -> str:
    if not row.result:
        return "no result yet"
    if row.status == "done":
        return "its metric is not a number"
    return row.result.get("error") or f"step {row.result.get('steps', '?')}"
