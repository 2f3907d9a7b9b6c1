"""Lays out docs/vision.md's tables, from the committed results of benchmarks/digits.py and benchmarks/vision.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
MISSING = "Not yet measured.\n"

Table = Callable[[tuple[str, ...], Sequence[tuple[str, ...]]], str]


def digits(table: Table) -> str:
    """Returns every mixer's test accuracy on the handwritten digits."""
    if (record := _read("digits.json")) is None:
        return MISSING
    rows = [
        (
            f"`{row['mixer']}`",
            f"{row['top1']:.2f} %",
            f"{row['parameters']:,}",
            f"{row['seconds']:.0f}",
        )
        for row in record["rows"]
    ]
    text = table(("mixer", "test accuracy", "parameters", "seconds, start to end"), rows)
    machine = record["provenance"]
    return (
        f"{text}\n{record['threads']} threads of {machine['cpu']}, torch {machine['torch']}, timm {machine['timm']}.\n"
    )


def cost(table: Table) -> str:
    """Returns images a second: forward, and training."""
    if (record := _read("vision-cpu.json")) is None:
        return MISSING
    rows = record["rows"]
    columns = list(dict.fromkeys((row["pass"], row["size"]) for row in rows))
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        found = {(row["pass"], row["size"]): row.get("images_per_second") for row in rows if row["model"] == model}
        lines.append((f"`{model}`", *(_rate(found.get(column)) for column in columns)))
    text = table(("images/s", *(f"{what}, {size} px" for what, size in columns)), lines)
    machine = record["provenance"]
    return (
        f"{text}\nBatches of {record['batch']}, fp32, {record['threads']} threads of {machine['cpu']}, torch "
        f"{machine['torch']}, timm {record['timm']}; medians, contenders in turns.\n"
    )


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _read(name: str) -> dict[str, Any] | None:
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
