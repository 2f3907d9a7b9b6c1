"""A recipe is a training written as a TOML file; settings override it. This module needs the standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mixerzoo
from mixerzoo.registry.registry import unknown

from .config import assign
from .files import read_toml

RECIPES = Path(mixerzoo.__file__).parent / "recipes"


def list_recipes(family: str) -> list[str]:
    """Returns the names of the package's recipes for `lm` or `vision`."""
    return sorted(path.stem for path in (RECIPES / family).glob("*.toml"))


def read_recipe(family: str, recipe: str | Path) -> dict[str, Any]:
    """Returns the tables of a recipe file, or of the package's recipe of that name.

    Raises ValueError if there is neither.
    """
    path = Path(recipe).expanduser()
    if path.suffix != ".toml":
        names = list_recipes(family)
        if str(recipe) not in names:
            raise ValueError(unknown("recipe", recipe, names) + "; remedy: one of these, or a .toml file")
        path = RECIPES / family / f"{recipe}.toml"
    return read_toml(path, "recipe")


def lay(values: Mapping[str, Any], settings: Sequence[tuple[str, Any]]) -> Any:
    """Returns `values` with the value at every dotted path replaced; later settings win."""
    for path, value in settings:
        values = assign(values, path, value)
    return values
