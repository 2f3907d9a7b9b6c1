"""Draws the metric against a number that the grid varied."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mixerzoo.ablation.formats import show_value
from mixerzoo.ablation.reading.arms import Arm
from mixerzoo.ablation.reading.statistics import mean
from mixerzoo.tasks.base import file_name

from .curves import MOST, band, best_of_each
from .style import Drawing, geometric, label_ends, metric_label, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEWEST = 3  # values that make a line


def varied(task: str, arms: Sequence[Arm], looks: Mapping[str, dict[str, Any]]) -> list[Drawing]:
    """Draws a figure for every number with three values or more: a line a mixer, level for mixers without it."""
    paths = dict.fromkeys(path for arm in arms for path in arm.variant)
    valued = [arm for arm in arms if arm.values]
    return [drawing for path in paths if (drawing := _against(path, task, valued, looks)) is not None]


def _against(path: str, task: str, arms: Sequence[Arm], looks: Mapping[str, dict[str, Any]]) -> Drawing | None:
    lines: dict[str, list[Arm]] = defaultdict(list)
    for arm in arms:
        rest = {key: value for key, value in arm.variant.items() if key != path}
        if is_number(arm.variant.get(path)):
            lines[json.dumps([arm.mixer, rest])].append(arm)
    values = {arm.variant[path] for line in lines.values() for arm in line}
    if len(values) < FEWEST:
        return None
    without = [arm for arm in arms if path not in arm.variant]
    leaders = best_of_each([line[0] for line in lines.values()], MOST)
    figure, (axes,) = panels(1, width=6)
    ends = []
    for line in (line for line in lines.values() if line[0] in leaders):
        ordered = sorted(line, key=lambda arm: arm.variant[path])
        look = {**looks[ordered[-1].label], "linestyle": "-", "alpha": 1}
        xs, ys = [arm.variant[path] for arm in ordered], [mean(arm.values) for arm in ordered]
        axes.plot(xs, ys, **look)
        band(axes, xs, [arm.values for arm in ordered], look)
        ends.append((ys[-1], ", ".join([line[0].mixer, *_others(line[0], path)]), look))
    for arm in best_of_each(without, MOST):
        axes.axhline(mean(arm.values), color=looks[arm.label]["color"], ls="--", lw=1.2)
        ends.append((mean(arm.values), arm.label, looks[arm.label]))
    axes.set(xlabel=path, ylabel=metric_label(arms[0], split=_split(arms)))
    value_ticks(axes, values)
    label_ends(axes, ends)
    caption = "Means over seeds, with their 95 % bootstrap intervals."
    caption += " Dashed: mixers without this setting." if without else ""
    if len(leaders) < len(lines):
        caption += f" The {len(leaders)} best of {len(lines)} lines, at least one a mixer."
    return Drawing(f"{_stem(path)}-{file_name(task)}", f"{task}: {path}", caption, figure, task)


def value_ticks(axes: Axes, values: Iterable[float]) -> None:
    """Marks the values themselves, on a logarithmic axis where they are geometric."""
    ordered = sorted(values)
    if geometric(ordered):
        axes.set_xscale("log")
    if len(ordered) <= MOST:
        axes.set_xticks(ordered, [show_value(value) for value in ordered])
        axes.set_xticks([], minor=True)


def _others(arm: Arm, path: str) -> list[str]:
    return [f"{key}={show_value(value)}" for key, value in arm.variant.items() if key != path]


def _split(arms: Sequence[Arm]) -> str:
    splits = {row.result.get("split", "") for arm in arms for row in arm.done}
    return {"valid": "validation"}.get(split := splits.pop(), split) if len(splits) == 1 else ""


def _stem(path: str) -> str:
    return path.replace(".", "-")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
