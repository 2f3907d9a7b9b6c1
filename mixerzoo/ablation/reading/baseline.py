"""Finds the arm that every other one of a task is compared with, seed by seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from .arms import Arm
from .statistics import Comparison


def comparisons(arms: Sequence[Arm], baseline: str) -> dict[str, Comparison]:
    """Returns, by label, how the arms of one task compare with the baseline: the arm, or the mixer, of that name.

    Of several arms of the mixer, an arm's baseline is the one with the same values wherever both were varied; there is
    none if several have them. On another variant of the task nothing compares.
    """
    named = [arm for arm in arms if baseline in (arm.label, arm.model_label)]
    candidates = _Candidates(named or [arm for arm in arms if arm.mixer == baseline], by_label=bool(named))
    found = {}
    for arm in arms:
        fitting = candidates.fitting(arm)
        comparison = arm.versus(fitting[0]) if len(fitting) == 1 else None
        if comparison is not None:
            found[arm.label] = comparison
    return found


class _Candidates:
    """Holds arms that may be a baseline, found by the values that another arm shares with them."""

    def __init__(self, arms: Sequence[Arm], *, by_label: bool) -> None:
        self.by_label = by_label
        self.kinds: dict[frozenset[str], list[Arm]] = defaultdict(list)  # by the paths that were varied
        for arm in arms:
            self.kinds[frozenset(arm.variant)].append(arm)
        self.indices: dict[tuple[frozenset[str], tuple[str, ...]], dict[tuple[str, ...], list[Arm]]] = {}

    def fitting(self, arm: Arm) -> list[Arm]:
        found: list[Arm] = []
        for kind in self.kinds:
            shared = () if self.by_label else tuple(sorted(arm.variant.keys() & kind))
            found += self._index(kind, shared).get(_values(arm, shared), [])
        return [other for other in found if other is not arm and (self.by_label or other.mixer != arm.mixer)]

    def _index(self, kind: frozenset[str], shared: tuple[str, ...]) -> dict[tuple[str, ...], list[Arm]]:
        if (kind, shared) not in self.indices:
            index: dict[tuple[str, ...], list[Arm]] = defaultdict(list)
            for arm in self.kinds[kind]:
                index[_values(arm, shared)].append(arm)
            self.indices[kind, shared] = index
        return self.indices[kind, shared]


def _values(arm: Arm, paths: Sequence[str]) -> tuple[str, ...]:
    return arm.task_label, *(repr(arm.variant[path]) for path in paths)
