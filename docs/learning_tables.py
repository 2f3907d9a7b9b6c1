"""Lays out docs/diagnostics.md's tables, from the committed results of benchmarks/learning.py."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "learning"
MISSING = "Not yet measured.\n"
CURVE = "length "
BESIDE = ("majority class", "root operator")  # what tasks measure besides

Row = Mapping[str, str]
Table = Callable[[tuple[str, ...], Sequence[tuple[str, ...]]], str]


def learning(table: Table) -> dict[str, str]:
    """Returns a block for every place of the page."""
    return {
        "mqar": _side_by_side(table, {"with short convolutions": "mqar", "without": "mqar-no-conv"}),
        "languages": _curves(table, "languages"),
        **{study: _scores(table, study) for study in ("digits", "listops-short", "text-1024")},
        "pathfinder": _scores(table, "pathfinder") + _baseline("pathfinder"),
    }


def _side_by_side(table: Table, studies: Mapping[str, str]) -> str:
    """Returns one column a study, the mixers in the order of the first."""
    summaries = [_summary(study) for study in studies.values()]
    if not all(summaries):
        return MISSING
    first, rest = summaries[0], [{row["mixer"]: row for row in summary} for summary in summaries[1:]]
    lines = [(f"`{row['mixer']}`", _score(row), *(_score(other[row["mixer"]]) for other in rest)) for row in first]
    return table(("accuracy", *studies), lines)


def _scores(table: Table, study: str) -> str:
    """Returns accuracy, the task's further measurements, and sizes."""
    if not (rows := _summary(study)):
        return MISSING
    measured = [name for name in BESIDE if name in rows[0]]
    lines = [
        (
            f"`{row['mixer']}`",
            _score(row),
            *(_percent(row[name]) for name in measured),
            f"{float(row['parameters']):,.0f}",
            f"{float(row['state_bytes']) / 2**10:,.1f} KiB",
        )
        for row in rows
    ]
    return table(("", "accuracy", *measured, "parameters", "state at T=1024"), lines)


def _curves(table: Table, study: str) -> str:
    """Returns a table a task: accuracy by length."""
    rows, blocks = _summary(study), []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        lengths = [name for name in own[0] if name.startswith(CURVE) and own[0][name]]
        lines = [(f"`{row['mixer']}`", *(_percent(row[length]) for length in lengths)) for row in own]
        blocks.append(table((task.rpartition("/")[2], *lengths), lines))
    return "\n".join(blocks) or MISSING


def _baseline(study: str) -> str:
    path = RESULTS / study / "baseline.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return "".join(f"\nOf the {what} alone: {100 * accuracy:.1f} %.\n" for what, accuracy in found.items())


def _summary(study: str) -> list[Row]:
    path = RESULTS / study / "summary.csv"
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _score(row: Row) -> str:
    """Returns mean and standard deviation over the seeds; the status of arms without a value is in their results.md."""
    if not row["mean"]:
        return "none"
    return _percent(row["mean"]) + (f" ± {100 * float(row['std']):.1f}" if row["std"] else "")


def _percent(share: str) -> str:
    return f"{100 * float(share):.1f} %" if share else ""
