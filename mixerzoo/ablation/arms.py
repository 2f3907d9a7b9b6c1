"""Arms: the runs of a grid that differ in nothing but their seed.

Whatever else differs between the arms of one mixer becomes part of their name, so runs with different settings or data
are never averaged.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixerzoo.tasks.config import flatten

from .store import Row

HIDDEN = "backbone.channel_mixer.hidden"


@dataclass(frozen=True)
class Arm:
    """Runs that differ only in their seed. `variant` holds the settings that tell it from other arms of its mixer."""

    task: str
    mixer: str
    variant: Mapping[str, Any]
    rows: tuple[Row, ...]

    @property
    def label(self) -> str:
        return ", ".join(
            [self.mixer, *(f"{short_path(path)}={show_value(value)}" for path, value in self.variant.items())]
        )

    @property
    def finished(self) -> list[Row]:
        return [row for row in self.rows if row.finished]

    @property
    def values(self) -> list[float]:
        return [row.result["value"] for row in self.rows if row.status == "done"]

    @property
    def mean(self) -> float | None:
        return _mean(self.values)

    @property
    def std(self) -> float | None:
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def average(self, key: str) -> float | None:
        return _mean([row.result[key] for row in self.finished])

    @property
    def measurements(self) -> dict[str, float | None]:
        """Means over the seeds of what the task measured besides."""
        rows = [row.result.get("measurements", {}).get("values", {}) for row in self.finished]
        return {name: _mean([row[name] for row in rows if name in row]) for row in rows for name in row}

    @property
    def maps(self) -> dict[str, list[list[float]]]:
        """What the task drew, its means over the seeds."""
        rows = [row.result.get("measurements", {}).get("maps", {}) for row in self.finished]
        return {name: _mean_map([row[name] for row in rows if name in row]) for row in rows for name in row}


def _mean_map(maps: Sequence[list[list[float]]]) -> list[list[float]]:
    return [[statistics.fmean(cells) for cells in zip(*lines, strict=True)] for lines in zip(*maps, strict=True)]


def arms(rows: Sequence[Row]) -> list[Arm]:
    """Rows grouped by everything but the seed, best first within each task; arms without a value last."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        key = json.dumps({k: v for k, v in row.config.items() if k != "seed"}, sort_keys=True)
        groups.setdefault(key, []).append(row)
    settings = [flatten({k: v for k, v in group[0].config.items() if k != "seed"}) for group in groups.values()]
    names = [(group[0].config["task"]["name"], _mixer_label(group[0])) for group in groups.values()]
    result = []
    for name, own, group in zip(names, settings, groups.values(), strict=True):
        siblings = [other for other_name, other in zip(names, settings, strict=True) if other_name == name]
        differing = [path for path in own if any(other.get(path) != own[path] for other in siblings)]
        consequences = (HIDDEN, "data") if set(differing) - {HIDDEN, "data"} else ()
        variant = {path: own[path] for path in differing if path not in consequences}
        result.append(Arm(*name, variant, tuple(sorted(group, key=lambda row: row.config["seed"]))))
    return sorted(result, key=_rank)


def short_path(path: str) -> str:
    return path.rpartition("backbone.mixer.")[2]


def show_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _mean(numbers: Sequence[float]) -> float | None:
    return statistics.fmean(numbers) if numbers else None


def _rank(arm: Arm) -> tuple[str, bool, float]:
    metric: Mapping[str, Any] = next((row.result["metric"] for row in arm.finished), {})
    sign = -1 if metric.get("higher_is_better") else 1
    return arm.task, arm.mean is None, sign * (arm.mean or 0.0)


def _mixer_label(row: Row) -> str:
    mixer = row.config["backbone"]["mixer"]
    return "+".join(m["name"] for m in (mixer if isinstance(mixer, list) else [mixer]))
