"""Says where the runs of a report come from: each combination of command, versions and machine once."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import Any

from .contents import Report

SHOWN = ("mixerzoo", "torch", "python", "git", "cpu", "cores", "device")


def origins(report: Report) -> list[tuple[dict[str, Any], int]]:
    """Returns what the provenances say, and of how many runs; the most frequent first."""
    known = {}
    found: Counter[str] = Counter()
    for row in report.rows:
        if provenance := row.result.get("provenance"):
            origin = {key: provenance.get(key) for key in (*SHOWN, "argv")}
            key = repr(list(origin.values()))
            known[key] = origin
            found[key] += 1
    return [(known[key], count) for key, count in found.most_common()]


def made_by(report: Report) -> list[str]:
    """Returns a sentence for every origin."""
    return [
        f"{count} runs made by `{command(origin)}` with mixerzoo {origin['mixerzoo']}, torch {origin['torch']}, "
        f"python {origin['python']} on {origin['cpu']} ({origin['device']})."
        for origin, count in origins(report)
    ]


def command(origin: dict[str, Any]) -> str:
    return shlex.join(origin["argv"] or [])
