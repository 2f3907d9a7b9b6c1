"""Draws what tasks measured as a series: accuracy against length, speed and memory. The training length is marked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mixerzoo.ablation.formats import short
from mixerzoo.ablation.reading.arms import Arm
from mixerzoo.ablation.reading.statistics import mean
from mixerzoo.tasks.base import file_name

from .curves import MOST, band, best_of_each
from .style import FAINT, Drawing, geometric, label_ends, panels, powers_of_two

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DECADES = 10.0  # a y axis is logarithmic if its values span more and don't come near zero


def series(task: str, arms: Sequence[Arm], looks: Mapping[str, dict[str, Any]]) -> list[Drawing]:
    """Draws a figure for every series that a run of the task brought."""
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for arm in arms:
        for row in arm.done:
            for name, line in (row.result.get("measurements", {}).get("series") or {}).items():
                found[name][arm.label].append(line)
    return [_draw(task, name, arms, lines, looks) for name, lines in found.items()]


def _draw(
    task: str,
    name: str,
    arms: Sequence[Arm],
    lines: Mapping[str, Sequence[Mapping[str, Any]]],
    looks: Mapping[str, dict[str, Any]],
) -> Drawing:
    figure, (axes,) = panels(1, width=6)
    shown = best_of_each([arm for arm in arms if arm.label in lines], MOST)
    every_x: set[float] = set()
    ends, every_y = [], []
    for arm in shown:
        points = _points(lines[arm.label])
        means = [mean(values) for values in points.values()]
        axes.plot(list(points), means, **looks[arm.label], label=arm.label)
        band(axes, list(points), list(points.values()), looks[arm.label])
        ends.append((means[-1], arm.label, looks[arm.label]))
        every_x |= points.keys()
        every_y += means
    first = lines[shown[0].label][0]
    axes.set(xlabel=first["x"], ylabel=first["y"])
    if min(every_y) > 0 and max(every_y) > DECADES * min(every_y):
        axes.set_yscale("log")
    if geometric(list(every_x)):
        powers_of_two(axes, short)
    mark_training(axes, first.get("mark"))
    label_ends(axes, ends)
    caption = "Means over seeds, with their 95 % bootstrap intervals."
    if first.get("mark") is not None:
        caption += f" The dotted line is the {first['x']} in training, {short(first['mark'])}."
    stem = "".join(c if c.isalnum() else "-" for c in name.lower())
    return Drawing(f"series-{file_name(task)}-{stem}", f"{task}: {name}", caption, figure, task)


def mark_training(axes: Axes, mark: float | None) -> None:
    if mark is not None:
        axes.axvline(mark, color=FAINT, ls=":", lw=1.4, zorder=1)


def _points(lines: Sequence[Mapping[str, Any]]) -> dict[float, list[float]]:
    """Returns, by ascending x, the values of the seeds; what is null was not measured."""
    points = defaultdict(list)
    for line in lines:
        for x, y in line["points"]:
            if y is not None:
                points[x].append(y)
    return dict(sorted(points.items()))
