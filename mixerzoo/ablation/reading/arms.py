"""Groups runs into arms: the runs of a grid that differ in nothing but their seed.

Any other difference between the arms of one mixer becomes part of their name. So runs with different settings or data
are never averaged, unless a regrouping asks for it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mixerzoo.ablation.formats import show_value
from mixerzoo.ablation.running.store import Row
from mixerzoo.tasks.config import readable

from . import statistics
from .columns import FOLDER, MIXER, columns, identity, mixer_label, settings
from .statistics import Comparison, Interval

# What a matching solves for, and what follows from a task: no part of a name where the rest tells the arms apart.
CONSEQUENCES = ("data", "backbone.channel_mixer.hidden", "backbone.dim", "backbone.depth")
ABSENT = "absent"


@dataclass(frozen=True)
class Arm:
    """Holds runs that differ only in their seed.

    variant: the settings that tell it from other arms of its mixer, by their readable paths.
    chosen: what a search chose for it.
    """

    task: str
    mixer: str
    variant: Mapping[str, Any]
    rows: tuple[Row, ...]
    chosen: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def label(self) -> str:
        return _join(self.mixer, self.variant)

    @cached_property
    def model_label(self) -> str:
        """Returns the label without what belongs to the task: the same on every task."""
        return _join(self.mixer, {path: value for path, value in self.variant.items() if not path.startswith("task.")})

    @cached_property
    def task_label(self) -> str:
        """Returns the task with what was varied of it."""
        return _join(self.task, {path: value for path, value in self.variant.items() if path.startswith("task.")})

    @cached_property
    def done(self) -> list[Row]:
        """Returns the runs with a value."""
        return [row for row in self.rows if row.status == "done" and row.result.get("value") is not None]

    @cached_property
    def lost(self) -> list[Row]:
        """Returns the runs that should have a value and have none; what a search gave up is not among them."""
        return [row for row in self.rows if row.status != "stopped" and row not in self.done]

    @cached_property
    def values(self) -> list[float]:
        return [row.result["value"] for row in self.done]

    @cached_property
    def by_seed(self) -> dict[int, float]:
        """Returns a value a seed, for pairing; of several runs of a seed, which a regrouping makes, their mean."""
        groups = defaultdict(list)
        for row in self.done:
            groups[row.config["seed"]].append(row.result["value"])
        return {seed: statistics.mean(values) for seed, values in groups.items()}

    @cached_property
    def mean(self) -> float | None:
        return statistics.mean(self.values) if self.values else None

    @cached_property
    def std(self) -> float | None:
        return statistics.std(self.values)

    @cached_property
    def interval(self) -> Interval | None:
        return statistics.interval(self.values)

    @property
    def metric(self) -> Mapping[str, Any]:
        """Returns the metric's name, unit and direction; empty as long as no run has reported them."""
        return next((row.result["metric"] for row in self.rows if "metric" in row.result), {})

    @property
    def higher_is_better(self) -> bool:
        return bool(self.metric.get("higher_is_better", True))

    def average(self, key: str) -> float | None:
        """Returns the mean of this number over the runs with a value that have it.

        Where no run has a value, it is the mean over all runs that have the number.
        """
        numbers = [row.result[key] for row in self.done or self.rows if row.result.get(key) is not None]
        return statistics.mean(numbers) if numbers else None

    @cached_property
    def measurements(self) -> dict[str, float | None]:
        """Returns means over the seeds of what the task measured besides."""
        numbers = defaultdict(list)
        for row in self.done:
            for name, value in row.result.get("measurements", {}).get("values", {}).items():
                numbers[name].append(value)
        known = {name: [value for value in values if value is not None] for name, values in numbers.items()}
        return {name: statistics.mean(values) if values else None for name, values in known.items()}

    @cached_property
    def maps(self) -> dict[str, list[list[float]]]:
        """Returns what the task drew, its means over the seeds."""
        maps = defaultdict(list)
        for row in self.done:
            for name, lines in row.result.get("measurements", {}).get("maps", {}).items():
                maps[name].append(lines)
        return {
            name: [[statistics.mean(cells) for cells in zip(*lines, strict=True)] for lines in zip(*drawn, strict=True)]
            for name, drawn in maps.items()
        }

    def versus(self, baseline: Arm) -> Comparison | None:
        return statistics.compare(self.by_seed, baseline.by_seed, higher_is_better=self.higher_is_better)


def arms(
    rows: Sequence[Row], *, by: Sequence[str] = (), tuned: Sequence[str] = (), follow: Sequence[str] = ()
) -> list[Arm]:
    """Groups rows by everything but the seed, best first within each task; arms without a value last.

    A difference in the task itself, or in the folder, is part of every arm's name, also of mixers that ran in one.
    by: group by these canonical paths alone, and by the task. tuned: paths that a search decided, which make no arms.
    follow: paths that were set together with others, whose names are enough.
    """
    groups: dict[str, list[Row]] = {}
    identities: dict[str, dict[str, Any]] = {}
    ignored = ("seed", *tuned)
    for row in rows:
        key = _group(row, by) if by else identity(row, ignored)
        if key not in groups:
            record = columns(row) if by else settings(row)
            paths = by or [path for path in record if path not in ignored]
            identities[key] = {path: record.get(path) for path in paths}
        groups.setdefault(key, []).append(row)
    families, tasks = defaultdict(list), defaultdict(list)
    for key, group in groups.items():
        task = group[0].config["task"]["name"]
        families[task, _mixers(group)].append(key)
        shared = {path: value for path, value in identities[key].items() if path.startswith("task.") or path == FOLDER}
        tasks[task].append(shared)
    follow = (*follow, *CONSEQUENCES)
    varied = {task: [] if by else _differing(own, follow) for task, own in tasks.items()}
    result = []
    for (task, mixer), keys in families.items():
        paths = [path for path in by if path not in ("task", MIXER)] or _differing(
            [identities[key] for key in keys], follow
        )
        paths = list(dict.fromkeys([*varied[task], *paths]))
        for key in keys:
            variant = {readable(path): identities[key][path] for path in paths if path in identities[key]}
            members = tuple(sorted(groups[key], key=lambda row: (row.config["seed"], row.run_id)))
            result.append(Arm(task, mixer, variant, members, _chosen(members, tuned)))
    return sorted(result, key=_rank)


def _group(row: Row, by: Sequence[str]) -> str:
    record = columns(row)
    return json.dumps([record["task"], *(record.get(path) for path in by)])


def _differing(identities: Sequence[Mapping[str, Any]], follow: Sequence[str]) -> list[str]:
    """Returns the paths in which some rows differ.

    Paths that follow from others are left out as long as the rest tells as many apart.
    """

    def distinct(paths: Sequence[str]) -> int:
        return len({repr([own.get(path, ABSENT) for path in paths]) for own in identities})

    differing = [path for path in dict.fromkeys(path for own in identities for path in own) if distinct([path]) > 1]
    for consequence in follow:
        rest = [path for path in differing if path != consequence]
        if distinct(rest) == distinct(differing):
            differing = rest
    return sorted(differing, key=lambda path: path != FOLDER)


def _mixers(group: Sequence[Row]) -> str:
    labels = dict.fromkeys(mixer_label(row.config) for row in group)
    return ", ".join(labels) if len(labels) <= 3 else f"{len(labels)} mixers"


def _chosen(group: Sequence[Row], tuned: Sequence[str]) -> dict[str, Any]:
    """Returns the tuned paths on which all runs of the arm agree."""
    records = [settings(row) for row in group] if tuned else []
    return {readable(path): records[0][path] for path in tuned if len({repr(own.get(path)) for own in records}) == 1}


def _rank(arm: Arm) -> tuple[str, bool, float]:
    return arm.task, arm.mean is None, (arm.mean or 0.0) * (-1 if arm.higher_is_better else 1)


def _join(name: str, variant: Mapping[str, Any]) -> str:
    return ", ".join([name, *(f"{path}={show_value(value)}" for path, value in variant.items())])
