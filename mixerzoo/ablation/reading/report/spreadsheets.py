"""Writes results.csv and results.parquet, a line a run, and summary.csv, a line an arm."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mixerzoo.ablation.reading.arms import Arm
from mixerzoo.ablation.reading.columns import columns, heading
from mixerzoo.tasks.files import replacing

from .contents import Report, Section
from .tables import NUMBERS, configuration

Record = Mapping[str, Any]


def runs(report: Report) -> list[dict[str, Any]]:
    """Returns every run with all that is one value of it, by readable paths."""
    return [{heading(path): value for path, value in columns(row).items()} for row in report.rows]


def summary(report: Report) -> list[dict[str, Any]]:
    """Returns every arm with its statistics."""
    return [_flat_arm(section, arm) for section in report.sections for arm in section.arms]


def to_csv(records: Sequence[Record]) -> str:
    """Writes records with the union of their columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _union(records), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def write_parquet(path: Path, records: Sequence[Record]) -> bool:
    """Writes a Parquet file; False, and nothing written, without pyarrow.

    A column of mixed kinds becomes one of texts.
    """
    if find_spec("pyarrow") is None:
        return False
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({name: _column([record.get(name) for record in records]) for name in _union(records)})
    with replacing(path) as file:
        parquet.write_table(table, file)
    return True


def _union(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record))


def _column(values: list[Any]) -> list[Any]:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and float in kinds:
        return [None if value is None else float(value) for value in values]
    if len(kinds) <= 1 and kinds <= {bool, int, str}:
        return values
    return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]


def _flat_arm(section: Section, arm: Arm) -> dict[str, Any]:
    comparison = section.comparisons.get(arm.label)
    low, high = arm.interval or (None, None)
    record = {
        "task": arm.task,
        "mixer": arm.mixer,
        **arm.variant,
        **{f"{path} (chosen)": value for path, value in arm.chosen.items()},
        "metric": arm.metric.get("name"),
        "split": section.split,
        "mean": arm.mean,
        "std": arm.std,
        "low": low,
        "high": high,
        "seeds": len(arm.values),
        "runs": len(arm.rows),
    }
    if section.baseline:
        record |= {"baseline": section.baseline, "difference": None, "difference.low": None, "difference.high": None}
    if comparison is not None:
        low, high = comparison.interval or (None, None)
        record |= {"difference": comparison.difference, "difference.low": low, "difference.high": high}
        record |= {"verdict": comparison.word, "common seeds": comparison.seeds}
    record |= {key: arm.average(key) for key in (*(key for key, _, _ in NUMBERS.values()), "tokens")}
    return {**record, **arm.measurements, "configuration": configuration(arm.rows[0].config)}
