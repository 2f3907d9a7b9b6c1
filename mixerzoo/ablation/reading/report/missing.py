"""Finds what a question asks for and no run was started on: mixers, values, cells of several axes, seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

from mixerzoo.ablation.question.paths import value_at
from mixerzoo.ablation.question.settings import Axis
from mixerzoo.ablation.reading.columns import mixer_label
from mixerzoo.ablation.running.store import Row
from mixerzoo.tasks.config import flatten, readable

Case = Mapping[str, Any]  # what an axis sets of a run, by canonical paths
ABSENT = "absent"
SOLVED = {"glu": "backbone.channel_mixer.hidden", "width": "backbone.dim", "depth": "backbone.depth"}


def axes_of(question: Mapping[str, Any]) -> list[Axis]:
    """Returns the axes of a question as its folder keeps it."""
    return [Axis.of(paths, values) for paths, values in flatten(question.get("vary") or {}).items()]


def missing(question: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, list[str]]:
    """Returns, by task, what the question asks for and isn't there."""
    names = {row.config["task"]["name"].rpartition("/")[2]: row.config["task"]["name"] for row in rows}
    started: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        started[row.config["task"]["name"], mixer_label(row.config)].append(row)
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for asked in question.get("tasks", ()):
        name = asked if isinstance(asked, str) else asked["name"]
        task = names.get(name.rpartition("/")[2], name)
        for mixer in question.get("mixers", ()):
            own = started.get((task, mixer), [])
            cells = _cells(question, own, {mixer, task, task.rpartition("/")[2]}) if own else [""]
            found[task] |= dict.fromkeys(mixer + cell for cell in cells)
    return {task: list(what) for task, what in found.items() if what}


def apart(
    absent: Mapping[str, Sequence[str]], left_out: Mapping[str, Any]
) -> tuple[dict[str, dict[str, str]], dict[str, list[str]]]:
    """Parts, by task, what cannot be, with its reason, from what has only not been started.

    left_out: as the store keeps it. Its cells have every value that was set, none where a mixer has no run at all;
    `absent` has only those values that no run has.
    """
    reasons: dict[tuple[str, str], str] = {}
    for cell in left_out.get("cells", ()):
        for count in range(min(1, len(cell["values"])), len(cell["values"]) + 1):
            for values in combinations(cell["values"], count):
                reasons.setdefault((_last(cell["task"]), ", ".join([cell["mixer"], *values])), cell["reason"])
    impossible: dict[str, dict[str, str]] = defaultdict(dict)
    others: dict[str, list[str]] = defaultdict(list)
    for task, names in absent.items():
        for name in names:
            if (_last(task), name) in reasons:
                impossible[task][name] = reasons[_last(task), name]
            else:
                others[task].append(name)
    return impossible, others


def _last(task: str) -> str:
    """Returns a task's short name: `diagnostics/mqar` is `mqar` too."""
    return task.rpartition("/")[2]


def _cells(question: Mapping[str, Any], rows: Sequence[Row], scopes: set[str]) -> Iterator[str]:
    """Yields what lacks among the runs of one mixer on one task: seeds, values that no run has, then combinations."""
    seeds = set(question.get("seeds", ()))
    absent = seeds - {row.config["seed"] for row in rows}
    yield from (f" seed {seed}" for seed in sorted(absent))
    axes = {}
    for cases in _axes(question, rows, scopes):
        there = {_place(row, cases[0]) for row in rows}
        yield from (_told(case) for case in cases if _key(case.values()) not in there)
        axes[tuple(cases[0])] = [case for case in cases if _key(case.values()) in there]
    found: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for row in rows:
        found[tuple(_place(row, paths) for paths in axes)].add(row.config["seed"])
    for cell in product(*axes.values()) if axes else ():
        told = "".join(map(_told, cell))
        own = found.get(tuple(_key(case.values()) for case in cell))
        yield from [told] if own is None else (f"{told} seed {seed}" for seed in sorted(seeds - own - absent))


def _axes(question: Mapping[str, Any], rows: Sequence[Row], scopes: set[str]) -> Iterator[list[Case]]:
    """Yields the cases of every axis that reach a mixer's runs on a task and that the matching hasn't solved for."""
    solved = SOLVED.get(question.get("solve") or "")
    for axis in axes_of(question):
        reached = [
            place
            for place, (scope, path) in enumerate(axis.targets)
            if scope in {"", *scopes}
            and path != solved
            and any(value_at(row.config, path, ABSENT) != ABSENT for row in rows)
        ]
        cases = [{case[place].path: case[place].value for place in reached} for case in axis.cases]
        if reached:
            yield list({_key(case.values()): case for case in cases}.values())


def _told(case: Case) -> str:
    """Names a case by its first setting, as the arms are."""
    path, value = next(iter(case.items()))
    return f", {readable(path)}={value}"


def _place(row: Row, paths: Iterable[str]) -> str:
    return _key(value_at(row.config, path, ABSENT) for path in paths)


def _key(values: Iterable[Any]) -> str:
    """Returns a text that is equal for what a configuration makes equal: 1 and 1.0."""
    return repr([float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in values])
