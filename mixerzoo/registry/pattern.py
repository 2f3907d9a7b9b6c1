"""A pattern of mixers is a name, a configuration with a 'name', or a list of those to tile over the depth.

    "hgrn2"    {"name": "hgrn2", "expand": 16}    ["hgrn2", {"name": "attention", "num_heads": 4}]

Its label joins the names, `hgrn2+attention`. Nothing here knows which mixers there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

MixerConfig: TypeAlias = "str | Mapping[str, Any]"
Pattern: TypeAlias = "MixerConfig | Sequence[MixerConfig]"
JOINT = "+"


def config_of(mixer: MixerConfig) -> dict[str, Any]:
    """Returns a mixer's configuration; a name is one with nothing else in it. Raises ValueError for other types."""
    if not isinstance(mixer, (str, Mapping)):
        raise ValueError(f"a mixer is a name or a configuration with a 'name', got {mixer!r}")
    return {"name": mixer} if isinstance(mixer, str) else dict(mixer)


def pattern_of(mixer: Pattern, what: str = "mixer") -> list[dict[str, Any]]:
    """Returns the configurations that a pattern lists, at least one, each with its 'name'.

    Raises ValueError for anything else; `what` is its name in the error.
    """
    listed = list(mixer) if isinstance(mixer, (list, tuple)) else [mixer]
    pattern = [config_of(one) for one in listed if isinstance(one, (str, Mapping))]
    if not pattern or len(pattern) < len(listed) or not all("name" in one for one in pattern):
        raise ValueError(f"{what} must be a name, a configuration with a 'name', or a list of those, got {mixer!r}")
    return pattern


def resolved(mixer: Pattern, what: str = "mixer") -> dict[str, Any] | list[dict[str, Any]]:
    """Returns a pattern with configurations for names, which is how files store it: a list stays a list."""
    pattern = pattern_of(mixer, what)
    return pattern if isinstance(mixer, (list, tuple)) else pattern[0]


def tiled(mixer: Pattern, depth: int) -> list[dict[str, Any]]:
    """Returns one configuration a layer: the pattern from its start as often as the depth holds it."""
    pattern = pattern_of(mixer)
    return [pattern[layer % len(pattern)] for layer in range(depth)]


def label_of(mixer: Pattern) -> str:
    """Returns `hgrn2`, or `hgrn2+attention` for a pattern of several."""
    return JOINT.join(str(one["name"]) for one in pattern_of(mixer))


def names_in(label: str) -> list[str]:
    """Returns the names that a label joins."""
    return label.split(JOINT)
