"""A grid is a question: mixers x tasks x varied settings x seeds, what is made equal, and what is searched for.

It is the same from keywords (`Grid.of`), from a TOML file (`read_grid`) and from the command line:

    mixers = ["hgrn2", "gla"]               a name, or a pattern tiled over the depth: "hgrn2+attention"
    tasks = ["diagnostics/mqar"]            a name, or a table: {name = "mqar", num_pairs = 8}
    seeds = 3                               0, 1, 2; or a list
    match = "params"                        params | flops | state, "params:hgrn2", "state:65536", or "none"
    solve = "glu"                           glu | width | depth: what gets the size that matches
    baseline = "attention"                  what the others are compared with, seed by seed
    set.train.steps = 900                   a setting; "hgrn2:train.lr" = 3e-3, quoted, for one mixer or task
    vary.mixer.expand = [16, 64, 128]       an axis; "null" stands for nothing
    vary."task.length,train.steps" = [[64, 500], [256, 2000]]    settings that go together
    tune.train.lr = [1e-3, 3e-3, 1e-2]      searched for every arm alike; "1e-4..1e-1" with search = "asha", trials = 8
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mixerzoo.registry.registry import unknown
from mixerzoo.tasks import RunConfig, Task, build_task
from mixerzoo.tasks.config import flatten
from mixerzoo.tasks.files import read_toml

from .matching import Matching
from .search import Candidates, Search
from .settings import Axis, Setting, check_reach, configure

KEYS = (
    *("question", "mixers", "tasks", "seeds", "match", "solve", "baseline"),
    *("set", "vary", "tune", "search", "trials", "choose_on"),
)


@dataclass(frozen=True)
class Grid:
    """Says what to compare, and how. `vary` holds axes, of which every combination is run."""

    mixers: tuple[str, ...]
    tasks: tuple[str | Mapping[str, Any], ...]
    seeds: tuple[int, ...] = (0, 1)
    settings: tuple[Setting, ...] = ()
    vary: tuple[Axis, ...] = ()
    matching: Matching | None = field(default_factory=Matching)
    search: Search | None = None
    baseline: str | None = None
    question: str = ""

    @classmethod
    def of(cls, **values: Any) -> Grid:
        """Builds a grid from the keys of a question file.

        `Grid.of(mixers=["hgrn2"], tasks=["mqar"], vary={"mixer.expand": [1, 8]})`.

        Raises ValueError for unknown keys and for values that no grid can have.
        """
        for key in values:
            if key not in KEYS:
                raise ValueError(unknown("key of a grid", key, KEYS))
        tables = {name: _table(values.get(name, {}), name) for name in ("set", "vary", "tune")}
        tune = [Candidates.of(path, tried) for path, tried in tables["tune"].items()]
        axes = [Axis.of(paths, _null(tried)) for paths, tried in tables["vary"].items()]
        search_keys = {"search": "method", "trials": "trials", "choose_on": "choose_on"}
        search = {name: values[key] for key, name in search_keys.items() if values.get(key) is not None}
        if search and not tune:
            raise ValueError(f"{', '.join(search_keys)} say how to tune, but nothing is tuned; remedy: tune.train.lr")
        grid = cls(
            tuple(_list(values.get("mixers", ()), "mixers must be a list of names", str)),
            tuple(_list(values.get("tasks", ()), "tasks must be a list of names and tables", (str, Mapping))),
            seeds_of(values.get("seeds", 2)),
            tuple(Setting.of(path, _null(value)) for path, value in tables["set"].items()),
            _last_of_each(axes),
            Matching.parse(values.get("match", "params"), values.get("solve")),
            Search(tuple(tune), **search) if tune else None,
            values.get("baseline"),
            values.get("question", ""),
        )
        if grid.baseline is not None and grid.baseline not in grid.mixers:
            raise ValueError(f"the baseline must be one of the mixers {', '.join(grid.mixers)}, got {grid.baseline!r}")
        if grid.search is not None:
            _check_search(grid.search, grid)
        return grid

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values, every path in its long form; `Grid.of(**values)` reads them back."""
        matching, search = self.matching, self.search
        return {
            "question": self.question,
            "mixers": list(self.mixers),
            "tasks": list(self.tasks),
            "seeds": list(self.seeds),
            "set": {_path(setting): setting.value for setting in self.settings},
            "vary": {",".join(map(_path, axis.cases[0])): axis.values for axis in self.vary},
            "match": f"{matching.quantity}:{matching.reference}" if matching else "none",
            "solve": matching.solve if matching else None,
            "baseline": self.baseline,
            "tune": {c.path: list(c.values) or f"{c.low}..{c.high}" for c in (search.tune if search else ())},
            "search": search.method if search else None,
            "trials": search.trials if search else None,
            "choose_on": search.choose_on if search else None,
        }


def read_grid(path: str | Path) -> dict[str, Any]:
    """Reads the keys of a question file, for `Grid.of`. Raises ValueError if it can't be read."""
    return read_toml(path, "question")


def expand(grid: Grid) -> list[RunConfig]:
    """Returns every run of the grid, all of one seed before the next.

    So an interrupted grid already has a whole table.

    Nothing is matched or searched for yet. Raises ValueError for unknown names, unknown keys, settings that reach no
    run, and data that cannot be read.
    """
    for what, values in (("mixer", grid.mixers), ("task", grid.tasks), ("seed", grid.seeds)):
        if not values:
            raise ValueError(f"a grid needs at least one {what}")
    tasks = [build_task(task) for task in grid.tasks]
    mixers = list(dict.fromkeys(grid.mixers))
    for setting in (*grid.settings, *(setting for axis in grid.vary for setting in axis.cases[0])):
        check_reach(setting, mixers, tasks)
    cells = [
        configure(mixer, task, 0, (*grid.settings, *itertools.chain.from_iterable(combination)))
        for task in tasks
        for combination in itertools.product(*(axis.cases for axis in grid.vary))
        for mixer in mixers
    ]
    shared: dict[Task, Task] = {}  # one instance of equal tasks, so that its data are read and hashed once
    distinct = {_text(cell): replace(cell, task=shared.setdefault(cell.task, cell.task)) for cell in cells}
    for task in shared:
        _ = task.fingerprint
    return [replace(cell, seed=seed) for seed in dict.fromkeys(grid.seeds) for cell in distinct.values()]


def seeds_of(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """Returns the seeds; a count stands for 0, 1, ..."""
    return tuple(range(seeds)) if isinstance(seeds, int) else tuple(_list(seeds, "seeds must be a count or a list"))


def _check_search(search: Search, grid: Grid) -> None:
    """Raises ValueError for what doesn't fit the rest of the question."""
    for setting in (setting for axis in grid.vary for setting in axis.cases[0]):
        if setting.path in search.paths:
            raise ValueError(
                f"{setting} is both varied and tuned; remedy: vary to compare its values, tune to choose one"
            )
    seeds = len(dict.fromkeys(grid.seeds))
    if search.choose_on > seeds:
        raise ValueError(f"a choice on {search.choose_on} seeds needs as many, got {seeds}; remedy: more --seeds")


def _last_of_each(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """Keeps the last of several axes that set the same.

    Raises ValueError for others that have a setting in common.
    """
    distinct = {frozenset(axis.targets): axis for axis in axes}
    for (first, one), (second, other) in itertools.combinations(distinct.items(), 2):
        if first & second:
            raise ValueError(f"the axes {one} and {other} set the same; remedy: one axis, or other settings")
    return tuple(distinct.values())


def _null(value: Any) -> Any:
    """Returns None for "null", because TOML has no word for nothing."""
    if isinstance(value, (list, tuple)):
        return list(map(_null, value))
    return None if value == "null" else value


def _path(setting: Setting) -> str:
    return f"{setting.scope}:{setting.path}" if setting.scope else setting.path


def _list(values: Any, what: str, kinds: type | tuple[type, ...] = object) -> Sequence[Any]:
    if not (isinstance(values, (list, tuple)) and all(isinstance(value, kinds) for value in values)):
        raise ValueError(f"{what}, got {values!r}")
    return values


def _table(values: Any, what: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise ValueError(f"{what} must be a table of paths and values, got {values!r}")
    return flatten(values)


def _text(run: RunConfig) -> str:
    return json.dumps(run.to_dict(), sort_keys=True)
