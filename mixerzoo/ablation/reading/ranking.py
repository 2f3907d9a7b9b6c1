"""Ranks models over several tasks: which have a value on every one, and their average ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from mixerzoo.ablation.formats import listed

from .arms import Arm
from .statistics import mean, ranks

FEWEST_TASKS = 3  # below, a critical difference says next to nothing


def task_labels(arms: Sequence[Arm]) -> list[str]:
    return list(dict.fromkeys(arm.task_label for arm in arms))


def complete(arms: Sequence[Arm]) -> dict[str, dict[str, Arm]]:
    """Returns, by task, the arms of models that have a value on every task; empty for fewer than two of either."""
    tasks = task_labels(arms)
    cells = {(arm.model_label, arm.task_label): arm for arm in arms if arm.values}
    models = [m for m in dict.fromkeys(arm.model_label for arm in arms) if all((m, task) in cells for task in tasks)]
    if len(tasks) < 2 or len(models) < 2:
        return {}
    return {task: {model: cells[model, task] for model in models} for task in tasks}


def average_ranks(arms: Sequence[Arm]) -> dict[str, float]:
    """Returns the average ranks of the models with a value on every task, 1 the best."""
    by_model = defaultdict(list)
    for group in complete(arms).values():
        higher = next(iter(group.values())).higher_is_better
        for model, rank in zip(
            group, ranks([arm.mean or 0.0 for arm in group.values()], higher_is_better=higher), strict=True
        ):
            by_model[model].append(rank)
    return {model: mean(own) for model, own in by_model.items()}


def unranked(arms: Sequence[Arm]) -> list[str]:
    """Says what keeps models, or all of them, out of the ranks; for several tasks only."""
    tasks, ranked = task_labels(arms), average_ranks(arms)
    others = [model for model in dict.fromkeys(arm.model_label for arm in arms) if model not in ranked]
    notes = []
    if len(tasks) > 1 and others:
        notes.append(f"Not ranked, for want of a value on every task: {listed(others)}.")
    if 1 < len(tasks) < FEWEST_TASKS:
        notes.append(f"A critical difference of ranks needs at least {FEWEST_TASKS} tasks; here are {len(tasks)}.")
    return notes
