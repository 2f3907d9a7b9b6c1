"""Draws how sensitive every arm is to what was searched for: the validation metric against the learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixerzoo.ablation.reading.arms import Arm
from mixerzoo.ablation.running.choice import Choice
from mixerzoo.tasks.base import file_name
from mixerzoo.tasks.config import readable

from .curves import MOST, best_of_each
from .style import Drawing, label_ends, metric_label, panels
from .varied import is_number, value_ticks


def sensitivities(
    task: str, arms: Sequence[Arm], choices: Sequence[Choice], looks: Mapping[str, dict[str, Any]]
) -> list[Drawing]:
    """Draws a figure for every number that was searched for."""
    chosen = {choice.best.rows[0].run_id: choice for choice in choices if choice.best is not None}
    searched = [(arm, chosen[row.run_id]) for arm in arms for row in arm.rows if row.run_id in chosen]
    shown = best_of_each([arm for arm, _ in searched], MOST)
    searched = [(arm, choice) for arm, choice in searched if arm in shown]
    paths = dict.fromkeys(path for _, choice in searched for path in choice.candidates[0].values)
    return [_draw(path, task, searched, looks) for path in paths if _numeric(path, searched)]


def _draw(path: str, task: str, searched: Sequence[tuple[Arm, Choice]], looks: Mapping[str, dict[str, Any]]) -> Drawing:
    figure, (axes,) = panels(1, width=6)
    tried: set[float] = set()
    ends = []
    for arm, choice in searched:
        assert choice.best is not None
        look = {**looks[arm.label], "linestyle": "-"}
        line = _best_scores(path, choice, higher_is_better=arm.higher_is_better)
        axes.plot(list(line), list(line.values()), **look)
        ring = {"mfc": "none", "mec": look["color"], "mew": 1.4, "ms": 11}
        axes.plot([choice.best.values[path]], [choice.best.score or 0.0], "o", **ring)
        lost = [candidate.values[path] for candidate in choice.candidates if candidate.score is None]
        axes.plot(lost, [0.02] * len(lost), "x", color=look["color"], transform=axes.get_xaxis_transform())
        ends.append((list(line.values())[-1], arm.label, look))
        tried |= {candidate.values[path] for candidate in choice.candidates}
    axes.set(xlabel=readable(path), ylabel=metric_label(searched[0][0], split="validation"))
    value_ticks(axes, tried)
    label_ends(axes, ends)
    caption = (
        "Every candidate of the search, on the seeds that the choice was made on; the chosen one is ringed. A cross at "
        "the bottom is a candidate without a value: it diverged, failed or was given up."
    )
    stem = path.replace(".", "-")
    return Drawing(
        f"search-{stem}-{file_name(task)}", f"{task}: sensitivity to {readable(path)}", caption, figure, task
    )


def _best_scores(path: str, choice: Choice, *, higher_is_better: bool) -> dict[float, float]:
    """Returns, by value of the path, ascending, the best score with any values of the other paths."""
    scores: dict[float, float] = {}
    for candidate in choice.candidates:
        if candidate.score is not None:
            own = scores.get(candidate.values[path], candidate.score)
            scores[candidate.values[path]] = (max if higher_is_better else min)(own, candidate.score)
    return dict(sorted(scores.items()))


def _numeric(path: str, searched: Sequence[tuple[Arm, Choice]]) -> bool:
    values = {candidate.values[path] for _, choice in searched for candidate in choice.candidates}
    return len(values) > 1 and all(map(is_number, values))
