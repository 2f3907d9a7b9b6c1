"""Published grids of diagnostic tasks, as recipes of the family `diagnostics`.

A file's [settings] hold for all of its cells. Every [[grid.NAME]] is one value of the axis NAME: settings that belong
together, like a length and its batch size. A cell is one value of every axis. Settings are dotted paths, with a mixer's
name and a colon before them if they are for that mixer alone, and texts are read as on the command line ("null").
Standard library only.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from mixerzoo.tasks.config import parse_value
from mixerzoo.tasks.recipes import list_recipes, read_recipe

FAMILY = "diagnostics"


def list_grids() -> list[str]:
    """Names of the grids that come with the package; the task's name stands before the underscore."""
    return list_recipes(FAMILY)


def read_grid(recipe: str | Path) -> list[dict[str, Any]]:
    """The settings of every cell: `{"task.length": 64, "hgrn2:backbone.mixer.expand": 64, ...}`.

    Raises ValueError for a name or file that isn't there.
    """
    values = read_recipe(FAMILY, recipe)
    axes = values.get("grid", {}).values()
    cells = ({k: v for part in (values.get("settings", {}), *cell) for k, v in part.items()} for cell in product(*axes))
    return [
        {path: parse_value(value) if isinstance(value, str) else value for path, value in cell.items()}
        for cell in cells
    ]
