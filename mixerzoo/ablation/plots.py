"""Learning curves, quality against state size, and what tasks draw, as PNG. The only place that imports matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator

from mixerzoo.tasks.base import file_name

from .arms import Arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, without its yellow (too pale for lines on white): distinct for every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vPX"
LINES = ("-", "--", ":", "-.")
DARKEST = 1e-3  # of a map


def draw(result: Sequence[Arm], directory: Path) -> list[str]:
    """`curves-<task>.png` for every task, `maps-<task>.png` where it has maps, `quality-vs-state.png`; their names."""
    styles = _styles(result)
    groups: dict[str, list[Arm]] = {}
    for arm in result:
        if arm.values:
            groups.setdefault(arm.task, []).append(arm)
    figures = {}
    for task, group in groups.items():
        figures[f"curves-{file_name(task)}.png"] = figure = Figure(figsize=(7, 4.5), layout="constrained")
        _curves(figure.subplots(), group, styles)
        if any(arm.maps for arm in group):
            figures[f"maps-{file_name(task)}.png"] = _maps(group)
    figures["quality-vs-state.png"] = figure = Figure(figsize=(1 + 5 * len(groups), 4.5), layout="constrained")
    for axes, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.values(), strict=True):
        _quality_against_state(axes, group, styles)
    for name, figure in figures.items():
        figure.savefig(directory / name, dpi=150)
    return list(figures)


def _curves(axes: Axes, group: Sequence[Arm], styles: Mapping[str, dict[str, Any]]) -> None:
    """The mean over seeds as a line, from the lowest to the highest seed as a band."""
    for arm in group:
        by_tokens: dict[int, list[float]] = {}
        for row in arm.rows:
            for point in row.curve:
                if row.status == "done" and point.get("metric") is not None:
                    by_tokens.setdefault(point["tokens"], []).append(point["metric"])
        tokens = sorted(by_tokens)
        values = [by_tokens[t] for t in tokens]
        style = styles[arm.label]
        axes.plot(tokens, [sum(v) / len(v) for v in values], **style, markersize=4, label=arm.label)
        low, high = list(map(min, values)), list(map(max, values))
        axes.fill_between(tokens, low, high, color=style["color"], alpha=0.18, lw=0)
    axes.set(
        xlabel="training tokens",
        ylabel=_axis_label(group),
        title=f"{group[0].task}, validation: mean over seeds, min to max",
    )
    axes.xaxis.set_major_formatter(EngFormatter())
    _finish(axes)
    axes.legend(frameon=False)


def _maps(group: Sequence[Arm]) -> Figure:
    """A line of pictures for every map, a column for every arm, in one logarithmic scale."""
    names = list(dict.fromkeys(name for arm in group for name in arm.maps))
    figure = Figure(figsize=(0.6 + 2.1 * len(group), 0.6 + 2.1 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), len(group), squeeze=False)
    for name, line in zip(names, grid, strict=True):
        for arm, axes in zip(group, line, strict=True):
            axes.set(xticks=[], yticks=[])
            if name in arm.maps:
                image = axes.imshow(arm.maps[name], norm=LogNorm(DARKEST, 1, clip=True), cmap="magma")
        line[0].set_ylabel(name)
    for arm, axes in zip(group, grid[0], strict=True):
        axes.set_title(arm.label)
    figure.colorbar(image, ax=grid, shrink=0.6, label="relative to the largest")
    return figure


def _quality_against_state(axes: Axes, group: Sequence[Arm], styles: Mapping[str, dict[str, Any]]) -> None:
    for arm in group:
        mean, state = arm.mean, arm.average("state_bytes")
        assert mean is not None and state is not None
        spread = [[mean - min(arm.values)], [max(arm.values) - mean]]
        style = {**styles[arm.label], "linestyle": "none"}
        axes.errorbar([state], [mean], yerr=spread, **style, markersize=8, capsize=3, label=arm.label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=4))
    axes.xaxis.set_major_formatter(FuncFormatter(_bytes))
    axes.margins(x=0.15, y=0.12)
    axes.set(xlabel="state per sequence at T = 1024", ylabel=_axis_label(group))
    axes.set(title=f"{group[0].task}, validation: mean over seeds, min to max")
    _finish(axes)
    axes.legend(frameon=False)


def _styles(result: Sequence[Arm]) -> dict[str, dict[str, Any]]:
    """A colour and marker per mixer and a line style per variant of it, the same in every plot."""
    mixers = sorted({arm.mixer for arm in result})
    styles = {}
    for index, mixer in enumerate(mixers):
        labels = sorted({arm.label for arm in result if arm.mixer == mixer})
        for variant, label in enumerate(labels):
            styles[label] = {
                "color": COLOURS[index % len(COLOURS)],
                "marker": MARKERS[index % len(MARKERS)],
                "linestyle": LINES[variant % len(LINES)],
            }
    return styles


def _axis_label(group: Sequence[Arm]) -> str:
    metric = next(row.result["metric"] for arm in group for row in arm.finished)
    better = "higher" if metric["higher_is_better"] else "lower"
    unit = f" ({metric['unit']})" if metric["unit"] else ""
    return f"{metric['name']}{unit}, {better} is better"


def _bytes(value: float, _position: int) -> str:
    for unit, size in (("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
