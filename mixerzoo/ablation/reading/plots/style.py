"""Gives every figure one look: palette, axes, labels that stand at what they name. Nothing is drawn here.

Colours belong to mixers, shades to their variants, and both are the same in every figure of a report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator

from mixerzoo.ablation.reading.arms import Arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, without its yellow (too pale for lines on white): distinct for every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vPX"
LINES = ("-", "--", ":", "-.")
INK, FAINT = "#202124", "#9aa0a6"
MOST_TICKS = 6
LINE, AXES_SHARE = 12, 0.8  # a label's height in points; of a figure's height, what its axes have
PALEST = 0.4  # opacity of a mixer's first variant; the last is opaque
SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.ymargin": 0.08,
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "mixerzoo",
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Drawing:
    """Holds a figure, its file's name, a title, and a caption that says how it was made.

    task: empty for all tasks.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    task: str = ""

    @property
    def words(self) -> tuple[str, str, str, str]:
        return self.name, self.title, self.caption, self.task


def panels(count: int, *, width: float = 4.4, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """Makes a figure with this many axes, in rows of up to three."""
    columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(0.6 + width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)  # measures texts, which a bare figure cannot
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def styles(arms: Sequence[Arm]) -> dict[str, dict[str, Any]]:
    """Returns, by label, a colour and marker of the mixer, and a shade and line style of the variant."""
    looks = {}
    for index, mixer in enumerate(sorted({arm.mixer for arm in arms})):
        labels = list(dict.fromkeys(arm.label for arm in sorted(arms, key=_variant_order) if arm.mixer == mixer))
        for variant, label in enumerate(labels):
            step = variant / (len(labels) - 1) if len(labels) > 1 and label != mixer else 1.0
            looks[label] = {
                "color": COLOURS[index % len(COLOURS)],
                "marker": MARKERS[index % len(MARKERS)],
                "linestyle": LINES[-1 - variant % len(LINES)] if len(labels) <= len(LINES) and step < 1 else "-",
                "alpha": PALEST + (1 - PALEST) * step,
            }
    return looks


def metric_label(arm: Arm, *, split: str = "") -> str:
    """Returns `accuracy, test, higher is better`, which stands on an axis."""
    metric = arm.metric
    unit = f" ({metric['unit']})" if metric.get("unit") and not metric["unit"].startswith("fraction") else ""
    better = "higher" if arm.higher_is_better else "lower"
    return ", ".join(filter(None, [f"{metric.get('name', 'metric')}{unit}", split, f"{better} is better"]))


def powers_of_two(axes: Axes, write: Callable[[float], str]) -> None:
    """Makes the x axis logarithmic, with powers of two as ticks."""
    axes.set_xscale("log", base=2)
    low, high = axes.get_xlim()
    octaves = math.log2(high / low)
    axes.xaxis.set_major_locator(LogLocator(base=2 ** math.ceil(octaves / MOST_TICKS)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def counts(axes: Axes) -> None:
    """Writes `1.2 M` on the x axis, and small numbers as they are."""
    large = EngFormatter()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: large(value) if value >= 1000 else f"{value:g}"))


def geometric(values: Sequence[float]) -> bool:
    """Returns whether positive values, over a factor of 4, stand more evenly on a logarithmic than on a linear axis."""
    ordered = sorted(set(values))
    if len(ordered) < 2 or ordered[0] <= 0 or ordered[-1] < 4 * ordered[0]:
        return False
    if len(ordered) == 2:
        return True
    steps = [b - a for a, b in pairwise(ordered)]
    ratios = [b / a for a, b in pairwise(ordered)]
    return max(ratios) / min(ratios) < max(steps) / min(steps)


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, Mapping[str, Any]]]) -> None:
    """Names lines at the right edge of the axes, at the height `y` (data) where each ends, moved apart if need be."""
    if not ends:
        return
    figure: Any = axes.figure
    edge, _ = axes.get_xlim()[1], axes.get_ylim()  # asking for the limits settles them
    to_axes = axes.transData + axes.transAxes.inverted()
    gap = LINE / (AXES_SHARE * figure.get_figheight() * 72)
    places = sorted(((to_axes.transform((edge, y))[1], text, look) for y, text, look in ends), key=_first)
    heights = spread([place for place, _, _ in places], gap)
    for height, (_, text, look) in zip(heights, places, strict=True):
        axes.annotate(
            text,
            (1.02, height),
            xycoords="axes fraction",
            va="center",
            color=look["color"],
            alpha=max(look.get("alpha", 1), 0.75),
            annotation_clip=False,
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Moves ascending places apart to at least `gap`, as little as possible: clusters stay centred where they were."""
    clusters: list[list[float]] = []  # [sum of (place - offset in the cluster), count]
    for place in places:
        clusters.append([place, 1])
        while len(clusters) > 1 and _start(clusters[-1], gap) < _start(clusters[-2], gap) + clusters[-2][1] * gap:
            total, count = clusters.pop()
            clusters[-1] = [clusters[-1][0] + total, clusters[-1][1] + count]
    return [_start(cluster, gap) + index * gap for cluster in clusters for index in range(int(cluster[1]))]


def _start(cluster: Sequence[float], gap: float) -> float:
    total, count = cluster
    return total / count - gap * (count - 1) / 2


def _first(place: tuple[float, str, Mapping[str, Any]]) -> float:
    return place[0]


def _variant_order(arm: Arm) -> list[tuple[bool, Any]]:
    """Orders numbers by size, before words."""
    return [
        (not isinstance(v, (int, float)), v if isinstance(v, (int, float)) else str(v)) for v in arm.variant.values()
    ]
