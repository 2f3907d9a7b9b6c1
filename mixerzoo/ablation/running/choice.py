"""Chooses what a search has found: of runs that differ only in tuned settings, the best on validation data."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mixerzoo.tasks.config import flatten

from .store import Row


class Candidate(NamedTuple):
    """Holds one point of a search. `score` is the mean validation metric; None if no run came to its end."""

    values: Mapping[str, Any]
    score: float | None
    rows: tuple[Row, ...]


class Choice(NamedTuple):
    """Holds the search of one arm.

    best: the best candidate, None if none has a score. at_edge: paths whose best value is the smallest or largest that
    was tried.
    """

    best: Candidate | None
    candidates: tuple[Candidate, ...]
    at_edge: tuple[str, ...]


def choose(rows: Sequence[Row], tuned: Sequence[str]) -> list[Choice]:
    """Chooses, among rows that differ in nothing but seed and tuned paths, the candidate that is best on validation.

    Candidates are compared on the seeds that all of them were run with.
    """
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        settings = flatten(row.config)
        candidate = json.dumps({path: settings.get(path) for path in tuned})
        groups.setdefault(arm_of(row.config, tuned), {}).setdefault(candidate, []).append(row)
    return [_choose({key: tuple(group) for key, group in candidates.items()}) for candidates in groups.values()]


def _choose(groups: Mapping[str, tuple[Row, ...]]) -> Choice:
    done = {key: [row for row in group if _valid(row) is not None] for key, group in groups.items()}
    seeds = [{row.config["seed"] for row in group} for group in done.values() if group]
    shared = set.intersection(*seeds) if seeds else set()
    candidates = []
    for key, group in groups.items():
        scores = [_valid(row) or 0.0 for row in done[key] if row.config["seed"] in shared]
        candidates.append(Candidate(json.loads(key), statistics.fmean(scores) if scores else None, group))
    scored = [candidate for candidate in candidates if candidate.score is not None]
    if not scored:
        return Choice(None, tuple(candidates), ())
    sign = 1 if next(iter(filter(None, done.values())))[0].result["metric"]["higher_is_better"] else -1
    best = max(scored, key=lambda candidate: sign * (candidate.score or 0.0))
    return Choice(best, tuple(candidates), tuple(path for path in best.values if _at_edge(path, best, candidates)))


def _valid(row: Row) -> float | None:
    """Returns the validation metric; None for a run that didn't come to its end, or whose metric is not a number."""
    return row.result.get("valid", row.result["value"]) if row.status == "done" else None


def _at_edge(path: str, best: Candidate, candidates: Sequence[Candidate]) -> bool:
    """Returns whether the best is the smallest or largest that was tried, of at least two numbers."""
    tried = [candidate.values[path] for candidate in candidates]
    numbers = sorted({value for value in tried if isinstance(value, (int, float))})
    return len(numbers) > 1 and best.values[path] in (numbers[0], numbers[-1])


def arm_of(config: Mapping[str, Any], tuned: Sequence[str]) -> str:
    """Returns a key that runs share if they differ in nothing but their seed and the tuned paths."""
    settings = flatten({key: value for key, value in config.items() if key != "seed"})
    return json.dumps({path: value for path, value in settings.items() if path not in tuned}, sort_keys=True)
