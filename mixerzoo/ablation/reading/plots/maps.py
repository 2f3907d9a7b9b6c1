"""Draws pictures of a task's models: a line for every map, a column for every arm, in one logarithmic scale."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from mixerzoo.ablation.reading.arms import Arm
from mixerzoo.tasks.base import file_name

from .curves import best_of_each
from .style import Drawing

DARKEST = 1e-3
MOST = 8  # columns


def maps(task: str, arms: Sequence[Arm]) -> Drawing | None:
    """Draws the maps; None for a task that draws nothing."""
    shown = best_of_each([arm for arm in arms if arm.maps], MOST)
    if not shown:
        return None
    names = list(dict.fromkeys(name for arm in shown for name in arm.maps))
    figure = Figure(figsize=(0.6 + 2.1 * len(shown), 0.6 + 2.1 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), len(shown), squeeze=False)
    for name, line in zip(names, grid, strict=True):
        for arm, axes in zip(shown, line, strict=True):
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            if name in arm.maps:
                image = axes.imshow(arm.maps[name], norm=LogNorm(DARKEST, 1, clip=True), cmap="magma")
        line[0].set_ylabel(name)
    for arm, axes in zip(shown, grid[0], strict=True):
        axes.set_title(arm.label)
    figure.colorbar(image, ax=grid, shrink=0.6, label="relative to the largest")
    return Drawing(f"maps-{file_name(task)}", f"{task}: maps", "Means over seeds, one scale for all.", figure, task)
