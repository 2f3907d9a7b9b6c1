"""Checks of constructor arguments: an error says what is wrong, what came, what is allowed and the remedy."""

from __future__ import annotations

from typing import Any


def check_divides(what: str, number: int, total_name: str, total: int) -> None:
    """Raises ValueError unless `number` is a positive divisor of `total`."""
    if not isinstance(number, int) or number < 1 or total % number:
        raise ValueError(f"{what} must divide {total_name}={total}, got {number!r}")


def head_width(what: str, expand: float, dim: int, num_heads: int) -> int:
    """Returns the channels a head, dim * expand / num_heads; raises ValueError where that is no whole number."""
    width = round(dim * expand)
    if num_heads < 1 or width < 1 or abs(width - dim * expand) > 1e-6 or width % num_heads:
        raise ValueError(f"{what} * dim must be a positive multiple of num_heads={num_heads}, got {dim * expand:g}")
    return width // num_heads


def check_choice(what: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises ValueError for a value that is none of those allowed."""
    if value not in allowed:
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(map(repr, allowed))}")
