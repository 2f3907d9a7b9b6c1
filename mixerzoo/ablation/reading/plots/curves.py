"""Draws learning curves: the validation metric against training tokens, with a band over the seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mixerzoo.ablation.reading.arms import Arm
from mixerzoo.ablation.reading.statistics import interval, mean
from mixerzoo.tasks.base import file_name

from .style import Drawing, counts, label_ends, metric_label, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 12  # lines that an eye can follow


def curves(task: str, arms: Sequence[Arm], looks: Mapping[str, dict[str, Any]]) -> Drawing | None:
    """Draws the best arm of every mixer, then the next best, up to twelve; None without an evaluated step."""
    evaluated = [arm for arm in arms if any(point.get("metric") is not None for point in arm.done[0].curve)]
    shown = best_of_each(evaluated, MOST)
    if not shown:
        return None
    figure, (axes,) = panels(1, width=6)
    ends = []
    for arm in shown:
        look, line = looks[arm.label], _line(arm)
        tokens = sorted(line)
        means = [mean(line[t]) for t in tokens]
        marker = {"marker": "" if len(tokens) > 25 else look["marker"]}
        axes.plot(tokens, means, **{**look, **marker}, label=arm.label)
        band(axes, tokens, [line[t] for t in tokens], look)
        ends.append((means[-1], arm.label, look))
    axes.set(xlabel="training tokens", ylabel=metric_label(shown[0], split="validation"))
    counts(axes)
    axes.margins(x=0.02)
    label_ends(axes, ends)
    caption = "Means over seeds, with their 95 % bootstrap intervals."
    if len(shown) < len(evaluated):
        caption += f" The {len(shown)} best of {len(evaluated)} arms, at least one a mixer."
    return Drawing(f"curves-{file_name(task)}", f"{task}: learning curves", caption, figure, task)


def best_of_each(arms: Sequence[Arm], most: int) -> list[Arm]:
    """Orders arms that come best first: the first of every mixer, then the others."""
    place: dict[str, int] = defaultdict(int)
    order = []
    for index, arm in enumerate(arms):
        order.append((place[arm.mixer], index))
        place[arm.mixer] += 1
    return [arms[index] for _, index in sorted(order)[:most]]


def band(axes: Axes, xs: Sequence[float], values: Sequence[Sequence[float]], look: Mapping[str, Any]) -> None:
    """Draws the interval at every x that has one."""
    found = [(x, spread) for x, own in zip(xs, values, strict=True) if (spread := interval(own)) is not None]
    if found:
        where, spreads = zip(*found, strict=True)
        low, high = zip(*spreads, strict=True)
        axes.fill_between(where, low, high, color=look["color"], alpha=0.15, lw=0)


def _line(arm: Arm) -> dict[float, list[float]]:
    """Returns, by tokens, the metrics of the seeds.

    Points that not every seed has would bend the mean and are left out.

    A step belongs to the seeds' mean number of tokens, which differs where sequences are not all as long.
    """
    points = defaultdict(list)
    for row in arm.done:
        for point in row.curve:
            if point.get("metric") is not None:
                points[point["step"]].append((point["tokens"], point["metric"]))
    shared = [values for values in points.values() if len(values) == len(arm.done)]
    return {mean([tokens for tokens, _ in values]): [metric for _, metric in values] for values in shared}
