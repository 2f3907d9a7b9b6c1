"""Draws all tasks at once: a heat map of models and tasks, and average ranks with the critical difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from mixerzoo.ablation.formats import number
from mixerzoo.ablation.reading.arms import Arm
from mixerzoo.ablation.reading.ranking import FEWEST_TASKS
from mixerzoo.ablation.reading.statistics import critical_difference

from .style import INK, Drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 30  # models a map has room for
ON_PALE, ON_DARK = "#101010", "#fefefe"
HEAT = "Blues"


def heat_map(arms: Sequence[Arm]) -> Drawing | None:
    """Draws models x tasks; None for fewer than two of either.

    Models come in the order of their mean brightness.
    """
    tasks = list(dict.fromkeys(arm.task_label for arm in arms))
    cells = {(arm.model_label, arm.task_label): arm for arm in arms}
    brightness = {key: value for task in tasks for key, value in _normalised(task, arms).items()}
    models = sorted(dict.fromkeys(model for model, _ in cells), key=lambda m: -_mean_of(m, brightness))
    if len(tasks) < 2 or len(models) < 2 or not brightness:
        return None
    shown = models[:MOST]
    figure = Figure(figsize=(1.6 + 1.25 * len(tasks), 0.9 + 0.34 * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.grid(False)
    axes.spines[:].set_visible(False)
    values = [[brightness.get((model, task), float("nan")) for task in tasks] for model in shown]
    axes.pcolormesh(values, cmap=HEAT, vmin=-0.05, vmax=1.15, edgecolors="white", lw=2)
    for line, model in enumerate(shown):
        for column, task in enumerate(tasks):
            arm, bright = cells.get((model, task)), brightness.get((model, task))
            text = "" if arm is None else number(arm.mean) if arm.mean is not None else arm.rows[0].status
            colour = INK if bright is None else ON_DARK if bright > 0.6 else ON_PALE
            axes.text(column + 0.5, line + 0.5, text, ha="center", va="center", color=colour, size=8)
    arrows = {arm.task_label: "↑" if arm.higher_is_better else "↓" for arm in arms}
    axes.set_xticks([i + 0.5 for i in range(len(tasks))], [f"{_wrapped(task)} {arrows[task]}" for task in tasks])
    axes.set_yticks([i + 0.5 for i in range(len(shown))], shown)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.invert_yaxis()
    caption = (
        "Means over seeds. A column runs from its worst model (pale) to its best (dark), so colours compare within a "
        "task, not between tasks. Cells with a word have no value, empty ones were not run."
    )
    if len(shown) < len(models):
        caption += f" The {len(shown)} best of {len(models)} models."
    return Drawing("heat-map", "Every model on every task", caption, figure)


def rank_diagram(ranks: Mapping[str, float], tasks: int) -> Drawing | None:
    """Draws Demsar's critical-difference diagram (JMLR 7, 2006); None for fewer than three tasks or two models."""
    if tasks < FEWEST_TASKS or not 2 <= len(ranks) <= MOST:
        return None
    critical = critical_difference(len(ranks), tasks)
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    bars = cliques([rank for _, rank in ordered], critical)
    half = (len(ordered) + 1) // 2
    top = 0.9 + 0.22 * len(bars)
    figure = Figure(figsize=(7.5, 0.3 * (top + half + 2.2)), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(1, len(ordered)), ylim=(top + half + 0.4, -1.7))
    axes.axis("off")
    _axis(axes, len(ordered), critical)
    for level, (first, last) in enumerate(bars):
        y = 0.55 + 0.22 * level
        axes.plot([ordered[first][1] - 0.03, ordered[last][1] + 0.03], [y, y], color=INK, lw=3, solid_capstyle="round")
    for index, (model, rank) in enumerate(ordered):
        left = index < half
        y = top + (index if left else len(ordered) - 1 - index)
        edge = 1 if left else len(ordered)
        axes.plot([rank, rank, edge], [0, y, y], color=INK, lw=0.9, clip_on=False)
        axes.annotate(
            f"{model}  {rank:.2f}" if left else f"{rank:.2f}  {model}",
            (edge, y),
            (-4 if left else 4, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
        )
    caption = (
        f"Average ranks over {tasks} tasks, 1 the best. Models joined by a bar are not told apart: their ranks differ "
        f"by less than Nemenyi's critical difference, {critical:.2f} at the 5 % level."
    )
    return Drawing("ranks", "Average ranks over tasks", caption, figure)


def cliques(ranks: Sequence[float], critical: float) -> list[tuple[int, int]]:
    """Returns the longest stretches (first, last) of ascending ranks whose ends differ less than critically."""
    found: list[tuple[int, int]] = []
    for first in range(len(ranks)):
        last = max(i for i in range(first, len(ranks)) if ranks[i] - ranks[first] < critical)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def _axis(axes: Axes, most: int, critical: float) -> None:
    """Draws the line of ranks, and above it the critical difference as a length."""
    axes.plot([1, most], [0, 0], color=INK, lw=1.2, clip_on=False)
    for rank in range(1, most + 1):
        axes.plot([rank, rank], [0, -0.15], color=INK, lw=1, clip_on=False)
        axes.text(rank, -0.3, str(rank), ha="center", va="bottom")
    width: Any = min(critical, most - 1)
    axes.plot([1, 1 + width], [-1.15, -1.15], color=INK, lw=1.2, marker="|", markersize=6, clip_on=False)
    more = "" if critical <= most - 1 else ", beyond the axis"
    axes.text(1 + width / 2, -1.3, f"critical difference {critical:.2f}{more}", ha="center", va="bottom", size=8)


def _normalised(task: str, arms: Sequence[Arm]) -> dict[tuple[str, str], float]:
    """Returns 0 for the worst mean of a task, 1 for the best; 1 for all where they are equal."""
    means = {(arm.model_label, task): arm.mean for arm in arms if arm.task_label == task and arm.mean is not None}
    if not means:
        return {}
    higher = next(arm.higher_is_better for arm in arms if arm.task_label == task)
    best, worst = (max, min) if higher else (min, max)
    low, high = worst(means.values()), best(means.values())
    return {key: (value - low) / (high - low) if high != low else 1.0 for key, value in means.items()}


def _mean_of(model: str, brightness: Mapping[tuple[str, str], float]) -> float:
    own = [value for (name, _), value in brightness.items() if name == model]
    return sum(own) / len(own) if own else -1.0


def _wrapped(task: str) -> str:
    return task.replace("/", "/\n").replace(", ", ",\n")
