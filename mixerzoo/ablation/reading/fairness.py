"""Warns where a comparison is not fair, or not sure: a sentence for everything to know beside the table.

Every check is a function of the arms that a task compares; those are best first, and arms without a value are last.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mixerzoo.ablation.formats import listed, show_value
from mixerzoo.ablation.running.choice import Choice
from mixerzoo.tasks.config import readable

from .arms import Arm
from .statistics import mean

TOLERANCE = 0.01  # by which sizes and tokens may differ and still count as equal
LAST = 0.1  # the share of a training over whose end an arm is asked whether it still improves
STILL = 0.02  # of all that it has improved since its first evaluation
LEARNING_RATE = "train.lr"
MACHINE = ("device", "cpu", "cores")
VERSIONS = ("mixerzoo", "torch", "git")


def warnings(arms: Sequence[Arm], choices: Sequence[Choice] = ()) -> list[str]:
    """Returns every warning about the arms of one task, and about the searches that chose them."""
    sentences = [sentence for check in CHECKS for sentence in check(arms)]
    return [*sentences, *_searches(arms, choices)]


def unconverged(arms: Sequence[Arm]) -> Iterator[str]:
    """Warns of arms whose validation metric still improved notably over the last tenth of their steps.

    Notably means by more than the standard deviation of an arm's seeds at the end. It also means by more than 2 % of
    what the arm has improved since its first evaluation. Fewer than three evaluations don't tell.
    """
    found = [arm for arm in arms if _still_improves(arm)]
    if found:
        names = listed([arm.label for arm in found])
        yield (
            f"Not converged: the validation metric of {names} still improved notably over the last tenth of the "
            "training; longer runs may change the order."
        )


def first_and_second(arms: Sequence[Arm]) -> Iterator[str]:
    """Warns if the best can't be told from the next. Each variant of a task has a first and a second."""
    groups = defaultdict(list)
    for arm in arms:
        if arm.values:
            groups[arm.task_label].append(arm)
    for task, group in groups.items():
        if len(group) < 2:
            continue
        where = f" on {task}" if len(groups) > 1 else ""
        first, second = group[:2]
        if first.interval is None or second.interval is None:
            yield f"{first.label} is ahead of {second.label}{where} on a single seed, which may be chance."
        elif first.interval.overlaps(second.interval):
            yield f"The 95 % intervals of the first, {first.label}, and the second, {second.label}, overlap{where}."


def unequal_seeds(arms: Sequence[Arm]) -> Iterator[str]:
    counts = _grouped({arm.label: len(arm.by_seed) for arm in arms})
    if len(counts) > 1:
        told = " | ".join(f"{count}: {listed(labels)}" for count, labels in sorted(counts.items(), reverse=True))
        yield f"Arms have different numbers of seeds with a value ({told})."


def without_value(arms: Sequence[Arm]) -> Iterator[str]:
    """Warns of runs without a value: means over the seeds that got through flatter their arm."""
    statuses: dict[str, int] = defaultdict(int)
    for arm in arms:
        for row in arm.lost:
            statuses[row.status if row.status != "done" else "without a number"] += 1
    if statuses:
        total = sum(len(arm.rows) for arm in arms)
        told = ", ".join(f"{count} {status}" for status, count in statuses.items())
        yield f"{sum(statuses.values())} of {total} runs have no value ({told}); means are over the others."


def unequal_data(arms: Sequence[Arm]) -> Iterator[str]:
    for task, group in _by_task(arms).items():
        data = {row.config.get("data") for arm in group for row in arm.done}
        if len(data) > 1:
            yield f"Runs on {task} did not see the same data: there are {len(data)} fingerprints."
        splits = {row.result["split"] for arm in group for row in arm.done if "split" in row.result}
        if len(splits) > 1:
            yield f"Runs on {task} are judged on different splits ({', '.join(sorted(splits))})."


def unequal_sizes(arms: Sequence[Arm]) -> Iterator[str]:
    """Warns of tokens and parameters that differ by more than 1 %."""
    for task, group in _by_task(arms).items():
        for key, what in (("tokens", "training tokens"), ("parameters", "parameters")):
            sizes = {arm.label: size for arm in group if arm.done and (size := arm.average(key))}
            if sizes and max(sizes.values()) > (1 + TOLERANCE) * min(sizes.values()):
                least, most = min(sizes, key=lambda label: sizes[label]), max(sizes, key=lambda label: sizes[label])
                yield (
                    f"Arms on {task} differ in {what}: from {sizes[least]:,.0f} ({least}) to "
                    f"{sizes[most]:,.0f} ({most})."
                )


def unequal_machines(arms: Sequence[Arm]) -> Iterator[str]:
    origins = [row.result["provenance"] for arm in arms for row in arm.done if row.result.get("provenance")]
    machines = {tuple(str(origin.get(key)) for key in MACHINE) for origin in origins}
    if len(machines) > 1:
        told = "; ".join(f"{device}, {cpu}, {cores} cores" for device, cpu, cores in sorted(machines))
        yield f"Runs were made on different hardware ({told}): their seconds and tokens/s don't compare."
    versions = {tuple(str(origin.get(key)) for key in VERSIONS) for origin in origins}
    if len(versions) > 1:
        yield f"Runs were made with {len(versions)} different versions of mixerzoo, torch or the repository."


def edge_of_an_axis(arms: Sequence[Arm]) -> Iterator[str]:
    """Judges a learning rate that was varied by hand like one that was searched for."""
    families = defaultdict(list)
    for arm in arms:
        if arm.values and LEARNING_RATE in arm.variant:
            rest = {path: value for path, value in arm.variant.items() if path != LEARNING_RATE}
            families[arm.mixer, str(rest)].append(arm)
    for family in families.values():
        best = family[0]
        tried = sorted({arm.variant[LEARNING_RATE] for arm in family})
        if len(tried) > 1 and best.variant[LEARNING_RATE] in (tried[0], tried[-1]):
            yield _edge(best.mixer, LEARNING_RATE, best.variant[LEARNING_RATE], tried)


CHECKS: tuple[Callable[[Sequence[Arm]], Iterator[str]], ...] = (
    *(first_and_second, without_value, unequal_seeds, unconverged, edge_of_an_axis),
    *(unequal_data, unequal_sizes, unequal_machines),
)


def _searches(arms: Sequence[Arm], choices: Sequence[Choice]) -> Iterator[str]:
    labels = {row.run_id: arm.label for arm in arms for row in arm.rows}
    for choice in choices:
        if choice.best is None:
            continue
        label = labels[choice.best.rows[0].run_id]
        for path in choice.at_edge:
            tried = sorted({candidate.values[path] for candidate in choice.candidates})
            yield _edge(label, path, choice.best.values[path], tried)
        if any(row.result.get("split") == "valid" for row in choice.best.rows):
            yield f"{label} is reported on the split that its settings were chosen on, which flatters it."
    trials = sorted({len(choice.candidates) for choice in choices})
    if len(trials) > 1:
        yield f"Arms were searched with different numbers of candidates ({', '.join(map(str, trials))})."


def _edge(label: str, path: str, value: Any, tried: Sequence[Any]) -> str:
    return (
        f"{label}: the best {readable(path)}, {show_value(value)}, is at the edge of what was tried "
        f"({show_value(tried[0])} to {show_value(tried[-1])}); a better one may lie beyond."
    )


def _still_improves(arm: Arm) -> bool:
    starts, before, ends = [], [], []
    for row in arm.done:
        points = [point for point in row.curve if point.get("metric") is not None]
        earlier = [point for point in points if point["step"] <= (1 - LAST) * points[-1]["step"]] if points else []
        if len(earlier) >= 2:
            starts.append(points[0]["metric"])
            before.append(earlier[-1]["metric"])
            ends.append(points[-1]["metric"])
    if not ends:
        return False
    sign = 1 if arm.higher_is_better else -1
    late, whole = sign * (mean(ends) - mean(before)), sign * (mean(ends) - mean(starts))
    return late > max(arm.std or 0.0, STILL * whole) and late > 0


def _by_task(arms: Sequence[Arm]) -> dict[str, list[Arm]]:
    groups = defaultdict(list)
    for arm in arms:
        groups[arm.task_label].append(arm)
    return groups


def _grouped(numbers: Mapping[str, int]) -> dict[int, list[str]]:
    groups = defaultdict(list)
    for label, number in numbers.items():
        groups[number].append(label)
    return groups
