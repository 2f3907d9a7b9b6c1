"""Reads the setting at a dotted path of a configuration, and lists the known paths where one is unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixerzoo.ablation.formats import MOST_NAMES
from mixerzoo.registry.registry import unknown


def value_at(config: Any, path: str, default: Any = None) -> Any:
    """Returns the one setting at a canonical path; of a pattern, that of the first mixer that has it."""
    value: Any = config
    for key in path.split("."):
        if isinstance(value, list) and not key.isdigit():
            value = next((item for item in value if key in item), None)
        if isinstance(value, list) and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, Mapping) and key in value:
            value = value[key]
        else:
            return default
    return value


def unknown_path(kind: str, path: str, known: Sequence[str]) -> str:
    """Returns `unknown path 'lr'; did you mean train.lr?`: paths that end alike, else the nearest and all."""
    key = path.rpartition(".")[2]
    if same := [other for other in known if other.rpartition(".")[2] == key]:
        return f"unknown {kind} {path!r}; did you mean {' or '.join(same[:MOST_NAMES])}?"
    return unknown(kind, path, known)
