"""What a question asks for and no run has been started on: mixers, values of an axis, cells of several axes, seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from mixerzoo.ablation.columns import mixer_label, value_at
from mixerzoo.ablation.store import Row
from mixerzoo.tasks.config import canonical, flatten, readable

ABSENT = "absent"
SOLVED = {"glu": "backbone.channel_mixer.hidden", "width": "backbone.dim", "depth": "backbone.depth"}


def missing(question: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, list[str]]:
    """By task, what the question asks for and isn't there."""
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


def _cells(question: Mapping[str, Any], rows: Sequence[Row], scopes: set[str]) -> Iterator[str]:
    """Of the runs of one mixer on one task: missing seeds, values that no run has, and then combinations."""
    seeds = set(question.get("seeds", ()))
    absent = seeds - {row.config["seed"] for row in rows}
    yield from (f" seed {seed}" for seed in sorted(absent))
    axes = {path: values for path, values in _axes(question, scopes) if _values(rows, path) != {_key(ABSENT)}}
    for path, values in axes.items():
        there = _values(rows, path)
        yield from (f", {readable(path)}={value}" for value in values if _key(value) not in there)
        axes[path] = [value for value in values if _key(value) in there]
    found: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for row in rows:
        found[tuple(_key(value_at(row.config, path, ABSENT)) for path in axes)].add(row.config["seed"])
    for cell in product(*axes.values()) if axes else ():
        told = "".join(f", {readable(path)}={value}" for path, value in zip(axes, cell, strict=True))
        own = found.get(tuple(map(_key, cell)))
        yield from [told] if own is None else (f"{told} seed {seed}" for seed in sorted(seeds - own - absent))


def _axes(question: Mapping[str, Any], scopes: set[str]) -> Iterator[tuple[str, list[Any]]]:
    """The axes that reach a mixer's runs on a task, without one that the matching has solved for."""
    for axis, values in flatten(question.get("vary") or {}).items():
        scope, _, path = axis.rpartition(":")
        if scope in {"", *scopes} and canonical(path) != SOLVED.get(question.get("solve") or ""):
            yield canonical(path), values


def _values(rows: Sequence[Row], path: str) -> set[str]:
    return {_key(value_at(row.config, path, ABSENT)) for row in rows}


def _key(value: Any) -> str:
    """Equal for what a configuration makes equal: 1 and 1.0."""
    return repr(float(value) if isinstance(value, int) and not isinstance(value, bool) else value)
