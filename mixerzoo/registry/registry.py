"""A registry names classes: by lazy reference ("module:Class"), by decorator, by call, or from an entry point."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, overload


class Registry:
    """Holds the names of one kind of thing.

    A lookup resolves a name and imports its plug-in; nothing happens before.
    """

    def __init__(self, kind: str, targets: dict[str, str | type], entry_point_group: str) -> None:
        self.kind = kind
        self._targets = dict(targets)
        self._group = entry_point_group
        self._watchers: list[Callable[[str], None]] = []

    @overload
    def register(self, name: str) -> Callable[[type], type]: ...
    @overload
    def register(self, name: str, target: str | type) -> str | type: ...
    def register(self, name: str, target: str | type | None = None) -> Any:
        """Registers a class, as `@register("name")` above it or as `register("name", target)`.

        The target is the class or its lazy reference "module:Class". Raises ValueError if the name already stands for
        something else.
        """
        if target is None:
            return lambda cls: self.register(name, cls)
        targets = self._all()
        known = targets.get(name, target)
        if _reference(known) != _reference(target):
            raise ValueError(
                f"{self.kind} {name!r} is already registered as {_reference(known)}, got {_reference(target)}; "
                "remedy: choose another name"
            )
        self._targets[name] = target
        if name not in targets:
            for watcher in self._watchers:
                watcher(name)
        return target

    def watch(self, watcher: Callable[[str], None]) -> None:
        """Calls `watcher(name)` for every name now, and later for each new one."""
        self._watchers.append(watcher)
        for name in self.names():
            watcher(name)

    def names(self) -> list[str]:
        return sorted(self._all())

    def names_of(self, cls: type) -> list[str]:
        """Returns every name that stands for a class."""
        return sorted(name for name, target in self._all().items() if _reference(target) == _reference(cls))

    def synonyms(self) -> list[list[str]]:
        """Returns the names of every class in one list, the shortest name first; nothing is imported."""
        names: dict[str, list[str]] = {}
        for name, target in self._all().items():
            names.setdefault(_reference(target), []).append(name)
        return sorted(sorted(same, key=lambda name: (len(name), name)) for same in names.values())

    def get(self, name: str) -> Any:
        """Returns the class that `name` stands for. Raises ValueError with the nearest names and the whole list."""
        targets = self._targets if name in self._targets else self._all()  # looking plug-ins up takes its time
        if name not in targets:
            raise ValueError(unknown(self.kind, name, targets))
        target = targets[name]
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = self._targets[name] = getattr(import_module(module), attribute)
        return target

    def _all(self) -> dict[str, str | type]:
        plugins = {plugin.name: plugin.value.replace(" ", "") for plugin in entry_points(group=self._group)}
        return {**plugins, **self._targets}


def unknown(kind: str, name: object, known: Any) -> str:
    """Returns `unknown mixer 'hgrn3'; did you mean hgrn2 or hgrn1? known: attention, gla, ...`"""
    near = difflib.get_close_matches(str(name), known, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown {kind} {name!r}; {hint}known: {', '.join(sorted(known))}"


def _reference(target: str | type) -> str:
    return target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"
