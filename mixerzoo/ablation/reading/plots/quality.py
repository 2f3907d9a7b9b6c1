"""Draws quality against what it costs: parameters, state, FLOPs, seconds; with the Pareto front."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mixerzoo.ablation.formats import size
from mixerzoo.ablation.reading.arms import Arm
from mixerzoo.ablation.reading.statistics import pareto_front

from .style import FAINT, Drawing, counts, geometric, label_ends, metric_label, panels, powers_of_two

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EQUAL = 1.01  # costs that differ by less tell nothing
MANY = 60  # arms in a panel: beyond, error bars and chains are a thicket


class Cost(NamedTuple):
    """Describes an x axis: the result's key, the file's name, the label."""

    key: str
    name: str
    label: str


class Name(NamedTuple):
    """Places a text at a point, in the colour of an arm."""

    x: float
    y: float
    text: str
    label: str


COSTS = (
    Cost("state_bytes", "state", "state per sequence at T = 1024"),
    Cost("parameters", "parameters", "parameters"),
    Cost("flops_per_token", "flops", "forward FLOPs per token"),
    Cost("seconds", "seconds", "seconds of a run"),
)


def qualities(tasks: Mapping[str, Sequence[Arm]], looks: Mapping[str, dict[str, Any]]) -> list[Drawing]:
    """Draws a figure for every cost in which arms of a task differ, a panel for every such task."""
    drawings = []
    for cost in COSTS:
        groups = {task: points for task, arms in tasks.items() if _differ(points := _points(arms, cost.key))}
        if not groups:
            continue
        figure, axes = panels(len(groups))
        named = [
            _panel(own, task, points, cost, looks) for own, (task, points) in zip(axes, groups.items(), strict=True)
        ]
        figure.draw_without_rendering()  # so that names find their places in the final layout
        for own, names, points in zip(axes, named, groups.values(), strict=True):
            if len(points) > MANY:
                label_ends(own, [(name.y, name.text, {"color": looks[name.label]["color"]}) for name in names])
            else:
                _name(own, names, looks)
        caption = (
            "Means over seeds with 95 % bootstrap intervals. The grey steps are the Pareto front: nothing outside it "
            "is both cheaper and better. Lines join the variants of a mixer."
        )
        drawings.append(Drawing(f"quality-vs-{cost.name}", f"Quality against {cost.label}", caption, figure))
    return drawings


def _points(arms: Sequence[Arm], key: str) -> list[tuple[Arm, float, float]]:
    known = ((arm, arm.average(key), arm.mean) for arm in arms)
    return [(arm, cost, quality) for arm, cost, quality in known if cost is not None and quality is not None]


def _differ(points: Sequence[tuple[Arm, float, float]]) -> bool:
    costs = [cost for _, cost, _ in points]
    return len(costs) > 1 and max(costs) > EQUAL * min(costs)


def _panel(
    axes: Axes,
    task: str,
    points: Sequence[tuple[Arm, float, float]],
    cost: Cost,
    looks: Mapping[str, dict[str, Any]],
) -> list[Name]:
    """Draws a panel, and returns what is to be named."""
    first = points[0][0]
    front = [points[i][1:] for i in pareto_front([p[1:] for p in points], higher_is_better=first.higher_is_better)]
    axes.step(*zip(*front, strict=True), where="post", color=FAINT, lw=4, alpha=0.35, zorder=1)
    chains = defaultdict(list)
    for arm, x, y in points:
        chains[arm.mixer].append((x, y, arm))
    for chain in chains.values():
        look = looks[chain[0][2].label]
        if len(chain) > 1 and len(points) <= MANY:
            ordered = sorted(chain, key=lambda point: point[0])
            axes.plot([x for x, _, _ in ordered], [y for _, y, _ in ordered], color=look["color"], lw=1, alpha=0.5)
        if len(points) > MANY:
            axes.plot([x for x, _, _ in chain], [y for _, y, _ in chain], **_cloud(look), rasterized=True)
            continue
        for x, y, arm in chain:
            style = {**looks[arm.label], "linestyle": "none"}
            spread = [[y - arm.interval.low], [arm.interval.high - y]] if arm.interval else None
            axes.errorbar([x], [y], yerr=spread, **style, capsize=2, elinewidth=1)
    axes.set(xlabel=cost.label, ylabel=metric_label(first), title=task)
    axes.margins(x=0.12, y=0.12)
    _scale(axes, cost, [x for _, x, _ in points])
    return [_named(chain) for chain in chains.values()]


def _named(chain: Sequence[tuple[float, float, Arm]]) -> Name:
    """Names a mixer at its dearest point."""
    x, y, arm = max(chain, key=lambda point: point[0])
    return Name(x, y, arm.mixer, arm.label)


def _cloud(look: Mapping[str, Any]) -> dict[str, Any]:
    return {"color": look["color"], "marker": ".", "linestyle": "none", "alpha": 0.5, "markersize": 3}


def _scale(axes: Axes, cost: Cost, costs: Sequence[float]) -> None:
    if cost.key == "state_bytes":
        powers_of_two(axes, size)
        return
    if geometric(costs):
        axes.set_xscale("log")
    counts(axes)


def _name(axes: Axes, names: Sequence[Name], looks: Mapping[str, dict[str, Any]]) -> None:
    """Writes each name beside its point, on the first side where it covers no other."""
    taken = [axes.transData.transform((x, y)) for x, y, _, _ in names]
    boxes: list[Any] = []
    sides = ((-5, 4, "right", "bottom"), (5, 4, "left", "bottom"), (5, -4, "left", "top"), (-5, -4, "right", "top"))
    for x, y, text, label in names:
        for dx, dy, ha, va in sides:
            note = axes.annotate(
                text, (x, y), (dx, dy), textcoords="offset points", ha=ha, va=va, color=looks[label]["color"]
            )
            box = note.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            if inside and not any(box.overlaps(b) for b in boxes) and not any(box.contains(*p) for p in taken):
                break
            if (dx, dy, ha, va) != sides[-1]:
                note.remove()
        boxes.append(box)
