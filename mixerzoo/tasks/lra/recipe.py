"""Reads the published recipes for Long Range Arena's tasks, as settings of a run.

A recipe is a TOML file with the tables of a run's configuration, [task], [backbone] and [train], its seed, and
[published], what its source reports. `hgrn2` for the task `lra/path-x` is the package's `lra/hgrn2_pathx.toml`.
Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixerzoo.registry.registry import unknown
from mixerzoo.tasks.config import flatten
from mixerzoo.tasks.recipes import list_recipes, read_recipe

FAMILY, TABLES = "lra", ("task", "backbone", "train", "published", "seed")


@dataclass(frozen=True)
class Recipe:
    """Holds a recipe.

    settings: dotted paths and values that override the defaults. published: the source's accuracy, in percent, ...
    """

    settings: tuple[tuple[str, Any], ...]
    seed: int
    published: Mapping[str, Any]


def lra_recipes(task: str | None = None) -> list[str]:
    """Returns the names of a task's recipes; without a task, the names of all of them, with their tasks."""
    names = list_recipes(FAMILY)
    return names if task is None else [name.rpartition("_")[0] for name in names if name.endswith(_ending(task))]


def lra_recipe(task: str, recipe: str | Path, mixer: str) -> Recipe:
    """Returns what a recipe says of a task, for a mixer.

    The mixer is its own, or any other, which leaves the keywords of its own out.

    recipe: a name (`hgrn2`), or a .toml file. Raises ValueError for names that aren't there, tables that no run has,
    and a file that is for another task.
    """
    if Path(recipe).suffix != ".toml":
        known = lra_recipes(task)
        if not known:
            raise ValueError(f"{task} has no recipes, got {str(recipe)!r}; remedy: leave it out, or a .toml file")
        if str(recipe) not in known:
            raise ValueError(unknown(f"recipe for {task}", recipe, known) + "; remedy: one of these, or a .toml file")
        recipe = f"{recipe}{_ending(task)}"
    values = read_recipe(FAMILY, recipe)
    for table in values:
        if table not in TABLES:
            raise ValueError(unknown("table of the recipe", table, TABLES))
    tables = {table: dict(values.get(table, {})) for table in ("task", "backbone", "train")}
    if (meant := tables["task"].pop("name", task)) != task:
        raise ValueError(f"the recipe {str(recipe)!r} is for {meant}, not for {task}")
    own = dict(tables["backbone"].pop("mixer", {}))
    if own.pop("name", mixer) == mixer:
        tables["backbone"]["mixer"] = own
    return Recipe(tuple(flatten(tables).items()), values.get("seed", 0), values.get("published", {}))


def _ending(task: str) -> str:
    return f"_{task.rpartition('/')[2].replace('-', '')}"
