"""Recipes: a training written down as a TOML file, and what is laid over it. Standard library only."""

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
    """Names of the recipes for `lm` or `vision` that come with the package."""
    return sorted(path.stem for path in (RECIPES / family).glob("*.toml"))


def read_recipe(family: str, recipe: str | Path) -> dict[str, Any]:
    """The tables of a recipe file, or of the package's recipe of that name. Raises ValueError if there is neither."""
    path = Path(recipe).expanduser()
    if path.suffix != ".toml":
        names = list_recipes(family)
        if str(recipe) not in names:
            raise ValueError(unknown("recipe", recipe, names) + "; remedy: one of these, or a .toml file")
        path = RECIPES / family / f"{recipe}.toml"
    return read_toml(path, "recipe")


def lay(values: Mapping[str, Any], settings: Sequence[tuple[str, Any]]) -> Any:
    """`values` with the value at every dotted path replaced, the later winning."""
    for path, value in settings:
        values = assign(values, path, value)
    return values
