"""Defines settings, as `--set` and `--vary` give them, and applies those that reach a run.

Later defaults override earlier ones: the dataclasses', the mixer's own (`Mixer.fitted`) and the keywords that the
task asks of it, the task's recipe, the user's settings, a value from every axis. A setting reaches the runs that have
it: `mixer.expand` those of mixers with that keyword, `task.length` those of tasks with that field. One that reaches
none is an error.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mixerzoo.registry import catalog
from mixerzoo.registry.catalog import MIXERS, mixer_info
from mixerzoo.registry.pattern import names_in
from mixerzoo.tasks import BackboneConfig, RunConfig, Task, TrainConfig
from mixerzoo.tasks.base import TASKS
from mixerzoo.tasks.config import assign, canonical, parse_setting, parse_values, readable

from .paths import unknown_path

# A mixer is fitted to the default width, so that an axis over the width varies the width alone.
WIDTH, HEAD = BackboneConfig.dim, 16
MIXER_PATH, TASK_PATH = "backbone.mixer.", "task."
ASKED = {"backbone.mixer": "mixers", "task": "tasks", "seed": "seeds"}  # what no setting is


@dataclass(frozen=True)
class Setting:
    """Holds `train.lr=3e-3` for every run that has it, or `hgrn2:train.lr=3e-3` for those of one mixer or task."""

    path: str
    value: Any
    scope: str = ""

    @classmethod
    def of(cls, path: str, value: Any) -> Setting:
        """Builds a setting from a path that may have a prefix and a short form."""
        scope, _, path = path.rpartition(":")
        return cls(canonical(path), value, scope)

    @classmethod
    def parse(cls, text: str) -> Setting:
        return cls.of(*parse_setting(text))

    def __str__(self) -> str:
        return f"{self.scope}:{readable(self.path)}" if self.scope else readable(self.path)


@dataclass(frozen=True)
class Axis:
    """Holds a setting with several values, of which every run gets one: `mixer.expand=16,64,128`.

    Settings that go together make one axis: `task.length,train.batch_size=[64,512],[256,128]`. The first names it.
    cases: what a run can get, a setting for every path.
    """

    cases: tuple[tuple[Setting, ...], ...]

    @classmethod
    def of(cls, paths: str, values: Sequence[Any]) -> Axis:
        """Builds the axis of one path, or of several with commas between, whose values are lists of as many."""
        names = [name.strip() for name in paths.split(",")]
        if not isinstance(values, (list, tuple)):
            raise ValueError(f"{paths} must be a list of values, got {values!r}")
        if not values:
            raise ValueError(f"{paths} needs at least one value")
        distinct = _distinct(values)
        if len(names) == 1:
            return cls(tuple((Setting.of(paths, value),) for value in distinct))
        for value in distinct:
            if not (isinstance(value, (list, tuple)) and len(value) == len(names)):
                raise ValueError(f"values of {paths} must be lists of {len(names)}, one for each, got {value!r}")
        axis = cls(tuple(tuple(map(Setting.of, names, value)) for value in distinct))
        if len(set(axis.targets)) < len(names):
            raise ValueError(f"{paths} sets something twice; remedy: every path once")
        return axis

    @classmethod
    def parse(cls, text: str) -> Axis:
        paths, equals, values = text.partition("=")
        if not (equals and paths.strip() and values.strip()):
            raise ValueError(f"an axis must read path=value,value, got {text!r}; example: mixer.expand=16,64,128")
        return cls.of(paths.strip(), parse_values(values))

    def __str__(self) -> str:
        return ",".join(map(str, self.cases[0]))

    def without(self, scopes: Collection[str]) -> Axis | None:
        """Returns the rest of the axis without settings for these prefixes; None if nothing is left."""
        cases = [tuple(setting for setting in case if setting.scope not in scopes) for case in self.cases]
        return Axis(tuple(_distinct(cases))) if cases[0] else None

    @property
    def targets(self) -> tuple[tuple[str, str], ...]:
        """Returns the prefix and the path of every setting in a case."""
        return tuple((setting.scope, setting.path) for setting in self.cases[0])

    @property
    def paths(self) -> tuple[str, ...]:
        """Returns the paths without repetition; a table shows the first."""
        return tuple(dict.fromkeys(setting.path for setting in self.cases[0]))

    @property
    def values(self) -> list[Any]:
        """Returns the values in the form that `of` takes."""
        cases = [[setting.value for setting in case] for case in self.cases]
        return cases if len(self.cases[0]) > 1 else [value for (value,) in cases]


def _distinct(values: Sequence[Any]) -> list[Any]:
    """Drops repeated values, also those that cannot be hashed."""
    return [value for index, value in enumerate(values) if value not in values[:index]]


def configure(mixer: str, task: Task, seed: int, settings: Iterable[Setting] = ()) -> RunConfig:
    """Returns one run with all defaults applied, and the settings that reach it."""
    pattern = [mixer_config(name, task) for name in names_in(mixer)]
    backbone = BackboneConfig(mixer=pattern if len(pattern) > 1 else pattern[0])
    values: Any = RunConfig(task, backbone, TrainConfig(), seed).to_dict()
    for setting in (*(Setting.of(path, value) for path, value in task.recipe.items()), *settings):
        if _reaches(setting, mixer, task):
            values = _lay(values, setting)
    return RunConfig.from_dict(values)


def mixer_config(name: str, task: Task) -> dict[str, Any]:
    """Returns a mixer's configuration on a task: its settings, and the task's keywords that it is capable of."""
    capabilities = mixer_info(name).capabilities
    asked = {keyword: value for keyword, value in task.mixer_keywords.items() if keyword in capabilities}
    return {"name": name, **MIXERS.get(name).fitted(WIDTH, HEAD), **asked}


def mixer_keywords(name: str) -> list[str]:
    """Lists what can be set of a mixer. Its width and direction belong to the model."""
    return [keyword for keyword in catalog.mixer_keywords(name) if keyword not in ("dim", "bidirectional")]


def _reaches(setting: Setting, mixer: str, task: Task) -> bool:
    """Returns whether a run has what is set."""
    if setting.scope not in ("", mixer) and setting.scope not in _names(task):
        return False
    if setting.path.startswith(MIXER_PATH):
        pattern, (key, *inner) = names_in(mixer), setting.path.removeprefix(MIXER_PATH).split(".")
        if key.isdigit():  # a place in a pattern
            pattern, key = pattern[int(key) : int(key) + 1] * (len(pattern) > 1), "".join(inner[:1])
        return any(key in mixer_keywords(name) for name in pattern)
    if setting.path.startswith(TASK_PATH):
        return setting.path.removeprefix(TASK_PATH).partition(".")[0] in _fields(task)
    return setting.path.startswith(("backbone.", "train."))


def check_reach(setting: Setting, mixers: Sequence[str], tasks: Sequence[Task]) -> None:
    """Raises ValueError for a setting that reaches no run of these mixers on these tasks."""
    scopes = {*mixers, *(name for task in tasks for name in _names(task))}
    if setting.scope and setting.scope not in scopes:
        raise ValueError(f"the setting {setting} fits no run; known prefixes here: {', '.join(sorted(scopes))}")
    if setting.path in ASKED:
        asked = ASKED[setting.path]
        raise ValueError(f"{setting} is no setting; remedy: --{asked}, or {asked} in a question file")
    if any(_reaches(setting, mixer, task) for mixer in mixers for task in tasks):
        return
    mixers = [mixer for mixer in mixers if mixer == setting.scope] or mixers
    tasks = [task for task in tasks if setting.scope in _names(task)] or tasks
    prefix = next((part for part in ("mixer.", "task.") if readable(setting.path).startswith(part)), "")
    known = _known(mixers, tasks)
    raise ValueError(unknown_path("setting", str(setting), [path for path in known if path.startswith(prefix)]))


def _known(mixers: Sequence[str], tasks: Sequence[Task]) -> list[str]:
    """Lists what can be set of runs of these mixers on these tasks, by readable paths."""
    names = itertools.chain.from_iterable(map(names_in, mixers))
    paths = {f"mixer.{keyword}" for name in names for keyword in mixer_keywords(name)}
    paths |= {TASK_PATH + field for task in tasks for field in _fields(task)}
    paths |= {f"backbone.{field.name}" for field in fields(BackboneConfig) if field.name != "mixer"}
    return sorted(paths | {f"train.{field.name}" for field in fields(TrainConfig)})


def _lay(values: Any, setting: Setting) -> Any:
    """Applies a setting; in a pattern, a keyword goes to every mixer that has it."""
    pattern = values["backbone"]["mixer"]
    key = setting.path.removeprefix(MIXER_PATH)
    if not (isinstance(pattern, list) and setting.path.startswith(MIXER_PATH)) or key.partition(".")[0].isdigit():
        return assign(values, setting.path, setting.value)
    for place, mixer in enumerate(pattern):
        if key.partition(".")[0] in mixer_keywords(mixer["name"]):
            values = assign(values, f"{MIXER_PATH}{place}.{key}", setting.value)
    return values


def _names(task: Task) -> list[str]:
    """Returns every name of a task: `diagnostics/mqar` is `mqar` too."""
    return [task.name, *TASKS.names_of(type(task))]


def _fields(task: Task) -> list[str]:
    return [field.name for field in fields(task)]
