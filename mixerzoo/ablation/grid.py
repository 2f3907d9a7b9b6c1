"""A grid is mixers x tasks x seeds; `expand` turns it into complete run configurations, and does nothing else.

Defaults are laid over each other in this order: the dataclasses', the mixer's entry in `MIXER_SETTINGS` and what the
task asks of every mixer able to do it, the task's recipe, and last the user's settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mixerzoo import mixer_info
from mixerzoo.tasks import BackboneConfig, RunConfig, Task, TrainConfig, build_task
from mixerzoo.tasks.config import assign, parse_setting

# Keywords for the default job's dim=64; a mixer that is not here runs with its own defaults.
MIXER_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "attention": {"num_heads": 4},
    "gla": {"num_heads": 4},
    "hgrn2": {"expand": 16},
    "retnet": {"num_heads": 4},
}


@dataclass(frozen=True)
class Setting:
    """`train.lr=3e-3` for every run, or `hgrn2:train.lr=3e-3` for the runs of one mixer or one task."""

    path: str
    value: Any
    scope: str = ""

    @classmethod
    def of(cls, path: str, value: Any) -> Setting:
        """From a path that may have a prefix."""
        scope, _, path = path.rpartition(":")
        return cls(path, value, scope)

    @classmethod
    def parse(cls, text: str) -> Setting:
        return cls.of(*parse_setting(text))


@dataclass(frozen=True)
class Grid:
    """What to compare. A mixer is a name, or a pattern of names tiled over the depth: `hgrn2+attention`."""

    mixers: tuple[str, ...]
    tasks: tuple[str | Mapping[str, Any], ...]
    seeds: tuple[int, ...] = (0, 1)
    settings: tuple[Setting, ...] = ()


def expand(grid: Grid) -> list[RunConfig]:
    """Every run of the grid, all of one seed before the next, so that an interrupted grid already has a whole table.

    Raises ValueError for unknown names, unknown keys, settings that fit no run, and data that cannot be read.
    """
    for what, values in (("mixer", grid.mixers), ("task", grid.tasks), ("seed", grid.seeds)):
        if not values:
            raise ValueError(f"a grid needs at least one {what}")
    tasks = [build_task(task) for task in grid.tasks]
    scopes = {*grid.mixers, *(task.name for task in tasks)}
    for setting in grid.settings:
        if setting.scope and setting.scope not in scopes:
            known = ", ".join(sorted(scopes))
            raise ValueError(f"the setting {setting.scope}:{setting.path} fits no run; known prefixes here: {known}")
    runs = [
        configure(mixer, task, seed, grid.settings)
        for seed in dict.fromkeys(grid.seeds)
        for task in tasks
        for mixer in dict.fromkeys(grid.mixers)
    ]
    shared: dict[Task, Task] = {}  # one instance of equal tasks, so that its data are read and hashed once
    runs = [replace(run, task=shared.setdefault(run.task, run.task)) for run in runs]
    for task in shared:
        _ = task.fingerprint
    return runs


def configure(mixer: str, task: Task, seed: int, settings: tuple[Setting, ...] = ()) -> RunConfig:
    """One run with all defaults applied."""
    pattern = [mixer_config(name, task) for name in mixer.split("+")]
    backbone = BackboneConfig(mixer=pattern if len(pattern) > 1 else pattern[0])
    values: Any = RunConfig(task, backbone, TrainConfig(), seed).to_dict()
    for setting in (*(Setting.of(path, value) for path, value in task.recipe.items()), *settings):
        if setting.scope in ("", mixer, task.name):
            values = assign(values, setting.path, setting.value)
    return RunConfig.from_dict(values)


def mixer_config(name: str, task: Task) -> dict[str, Any]:
    """A mixer's configuration on a task: its settings and those of the task's keywords that it is capable of."""
    capabilities = mixer_info(name).capabilities
    asked = {keyword: value for keyword, value in task.mixer_keywords.items() if keyword in capabilities}
    return {"name": name, **MIXER_SETTINGS.get(name, {}), **asked}
