"""Makes a run one flat record, and reads conditions on it: the dotted paths of filters, regrouping and results.csv.

train.lr=3e-3    task.name=mqar    mixer=hgrn2,gla    seed<2    parameters>=1e6    status!=done
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixerzoo.ablation.question.paths import unknown_path
from mixerzoo.ablation.running.store import Row
from mixerzoo.registry.pattern import label_of
from mixerzoo.tasks.config import canonical, parse_values, readable

MIXER = "backbone.mixer"
FOLDER = "folder"
DRAWN = ("maps", "series")  # what a task measured that is no single number
ORDERS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def mixer_label(config: Mapping[str, Any]) -> str:
    """Returns the label of a stored run's mixer or pattern."""
    return label_of(config["backbone"]["mixer"])


def heading(path: str) -> str:
    """Returns what tables and sentences call a canonical path."""
    return "mixer" if path == MIXER else readable(path)


def settings(row: Row) -> dict[str, Any]:
    """Returns what was asked for, under canonical paths; `task` and `backbone.mixer` are the names."""
    return _leaves(row.config, "", {"task": row.config["task"]["name"], MIXER: mixer_label(row.config)})


def identity(row: Row, ignored: Sequence[str] = ("seed",)) -> str:
    """Returns a text that is equal for runs with equal settings at all canonical paths but the ignored ones."""
    config: Any = row.config
    for path in ignored:
        config = _without(config, path.split("."))
    return json.dumps(config, sort_keys=True)


def columns(row: Row) -> dict[str, Any]:
    """Returns everything of a run that is one value: what was asked for, and what came of it.

    A pattern has its mixers' settings also where a single mixer has them, from the first that has them.
    """
    measured = {k: v for k, v in row.result.get("measurements", {}).items() if k not in DRAWN}
    result = {**row.result, "measurements": measured} if measured else row.result
    asked, pattern = settings(row), row.config["backbone"]["mixer"]
    for mixer in pattern if isinstance(pattern, list) else ():
        asked = {f"{MIXER}.{key}": value for key, value in mixer.items() if key != "name"} | asked
    return _leaves(result, "", {"run_id": row.run_id, "status": row.status, **asked})


@dataclass(frozen=True)
class Condition:
    """Holds `path` (canonical), an operator, and values.

    `=` holds for any of several values, `!=` for none of them.
    """

    path: str
    operator: str
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Reads a condition. Raises ValueError for text that is none."""
        found = re.fullmatch(r"\s*([^\s=<>!]+)\s*(!=|<=|>=|=|<|>)\s*(.+)", text)
        if found is None:
            raise ValueError(f"a filter must read PATH=VALUE, or with !=, <, <=, >, >=, got {text!r}; example: seed<2")
        path, sign, values = found[1], found[2], tuple(parse_values(found[3].strip()))
        if sign in ORDERS and not (len(values) == 1 and _is_number(values[0])):
            raise ValueError(f"{sign} compares with one number, got {found[3]!r} in {text!r}; remedy: = or !=")
        return cls(canonical(path), sign, values)

    def holds(self, record: Mapping[str, Any]) -> bool:
        """Returns whether a record fits. A run without the path has None there, which fits no order."""
        value = record.get(self.path)
        if self.operator in ORDERS:
            return _is_number(value) and ORDERS[self.operator](value, self.values[0])
        return any(value == wanted or str(value) == str(wanted) for wanted in self.values) == (self.operator == "=")

    def __str__(self) -> str:
        return f"{heading(self.path)}{self.operator}{','.join(map(str, self.values))}"


def select(rows: Sequence[Row], where: Iterable[str]) -> list[Row]:
    """Returns the rows for which every condition holds.

    Raises ValueError for a path that no run has, and if no row is left.
    """
    conditions = [Condition.parse(text) for text in where]
    if not conditions:
        return list(rows)
    records = [columns(row) for row in rows]
    check_paths([condition.path for condition in conditions], records)
    kept = [
        row
        for row, record in zip(rows, records, strict=True)
        if all(condition.holds(record) for condition in conditions)
    ]
    if not kept:
        raise ValueError(f"none of {len(rows)} runs has {' and '.join(map(str, conditions))}; remedy: a wider filter")
    return kept


def check_paths(paths: Iterable[str], records: Iterable[Mapping[str, Any]]) -> None:
    """Raises ValueError, with a suggestion, for a path that no record has."""
    known = {path for record in records for path in record}
    for path in paths:
        if path not in known:
            raise ValueError(unknown_path("path", heading(path), sorted(map(heading, known))))


def _leaves(values: Any, path: str, found: dict[str, Any]) -> dict[str, Any]:
    """Does what `flatten` does, several times as fast, for values read from JSON alone: there may be 10,000 rows."""
    for key, value in values.items() if type(values) is dict else enumerate(values):
        kind = type(value)
        if kind is dict or (kind is list and any(type(item) is dict for item in value)):
            _leaves(value, f"{path}{key}.", found)
        else:
            found[f"{path}{key}"] = value
    return found


def _without(values: Any, keys: Sequence[str]) -> Any:
    if not (isinstance(values, Mapping) and keys[0] in values):
        return values
    if len(keys) == 1:
        return {key: value for key, value in values.items() if key != keys[0]}
    return {**values, keys[0]: _without(values[keys[0]], keys[1:])}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
