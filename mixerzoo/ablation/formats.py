"""Writes numbers as people read them: the same in tables, figures and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MOST_NAMES = 5  # in a sentence


def number(value: float) -> str:
    """Writes a metric with four decimals, or fewer where it is large."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def signed(value: float) -> str:
    return f"{'+' if value >= 0 else '-'}{number(abs(value))}"


def whole(value: float) -> str:
    return f"{value:,.0f}"


def short(value: float) -> str:
    """Writes three digits, or whole numbers where those are more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def counted(number: int, what: str) -> str:
    """Writes `1 run`, `2 runs`."""
    return f"{number} {what}{'s' * (number != 1)}"


def size(value: float) -> str:
    """Writes `256 B`, `4 KiB`, `1.5 MiB`."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= scale:
            return f"{value / scale:.4g} {unit}"
    return f"{value:.0f} B"


def show_value(value: Any) -> str:
    """Writes a setting: `0.003`, `16`, `True`."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def listed(names: Sequence[str]) -> str:
    """Writes `a, b`, and the number of names beyond five.

    Semicolons part names that have commas themselves.
    """
    separator = "; " if any("," in name for name in names) else ", "
    rest = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return separator.join(names[:MOST_NAMES]) + rest
