"""Makes tables as data, without a format: columns, and cells with a text, its number, and whether it is the best.

The terminal, Markdown, LaTeX and HTML write the same tables, each in its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixerzoo.ablation.formats import number, short, show_value, signed, size, whole
from mixerzoo.ablation.reading.arms import Arm
from mixerzoo.ablation.reading.ranking import average_ranks, task_labels
from mixerzoo.ablation.reading.statistics import Comparison, Interval
from mixerzoo.registry.pattern import pattern_of

from .contents import Report, Section

INTERVAL = "95 % interval"
LAST = 6  # rank of a column of words, which only a page has room for


@dataclass(frozen=True)
class Column:
    """Describes a column.

    number: aligned to the right. rank: what goes first where room is short; 0 always stays.
    """

    name: str
    number: bool = True
    rank: int = 0


@dataclass(frozen=True)
class Cell:
    """Holds what is shown, what it sorts by (None last), its interval, and whether it is the best of its column."""

    text: str
    value: float | str | None = None
    interval: Interval | None = None
    best: bool = False


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[Column, ...]
    lines: tuple[tuple[Cell, ...], ...]

    def without(self, *dropped: int) -> Table:
        """Returns the table without the columns of these indices."""
        kept = [index for index in range(len(self.columns)) if index not in dropped]
        lines = tuple(tuple(line[index] for index in kept) for line in self.lines)
        return Table(self.title, tuple(self.columns[index] for index in kept), lines)


def results(section: Section) -> Table:
    """Returns a table with an arm a line, best first; what was left out or hasn't been started is a line too.

    Columns that no arm has are left out.
    """
    names = list(dict.fromkeys(path for arm in section.arms for path in arm.variant))
    chosen = list(dict.fromkeys(path for arm in section.arms for path in arm.chosen))
    columns = [Column("mixer", number=False)]
    columns += [Column(name) for name in names]
    columns += [Column(f"{name} (chosen)") for name in chosen]
    columns += [Column(metric_label(section)), Column(INTERVAL, rank=2)]
    if section.baseline:
        columns += [Column(f"vs {section.baseline}", rank=1), Column("95 % of the difference", rank=5)]
        columns.append(Column("verdict", number=False, rank=1))
    columns += [Column("seeds"), *(Column(name, rank=rank) for name, (_, _, rank) in NUMBERS.items())]
    columns.append(Column("configuration", number=False, rank=LAST))
    lines = [_line(section, arm, names, chosen) for arm in section.arms]
    absent = dict.fromkeys(section.left_out, "left out") | dict.fromkeys(section.missing, "missing")
    for what, status in absent.items():
        lines.append([Cell(what, what), *(Cell("") for _ in [*names, *chosen]), Cell(status)])
        lines[-1] += [Cell("")] * (len(columns) - len(lines[-1]))
    return _without_empty(f"{section.task}: mean ± standard deviation over seeds", columns, lines)


def measured(section: Section) -> Table | None:
    """Returns a table of what the task measured besides; None if nothing."""
    names = list(dict.fromkeys(name for arm in section.arms for name in arm.measurements))
    if not names:
        return None
    columns = [Column("mixer", number=False), *(Column(name) for name in names)]
    lines = [
        [Cell(arm.label, arm.label), *(_measured(arm.measurements.get(name)) for name in names)]
        for arm in section.arms
        if arm.measurements
    ]
    return _without_empty(f"{section.task}: measured besides", columns, lines)


def across(report: Report) -> Table | None:
    """Returns every model on every task, with average ranks over the tasks that all have; None for one task."""
    tasks = task_labels(report.arms)
    cells = {(arm.model_label, arm.task_label): arm for arm in report.arms}
    models = list(dict.fromkeys(arm.model_label for arm in report.arms))
    if len(tasks) < 2 or not any((model, task) in cells for model in models for task in tasks[1:]):
        return None
    averages = average_ranks(report.arms)
    best = {
        task: next((arm.model_label for arm in report.arms if arm.task_label == task and arm.values), "")
        for task in tasks
    }
    columns = [Column("mixer", number=False)]
    columns += [Column(f"{task} {_arrow(next(a for a in report.arms if a.task_label == task))}") for task in tasks]
    columns += [Column("average rank")] * bool(averages)
    lines = []
    for model in sorted(models, key=lambda model: averages.get(model, float("inf"))):
        line = [Cell(model, model)]
        for task in tasks:
            arm = cells.get((model, task))
            text = value_text(arm) if arm is not None else "not run"
            value, interval = (None, None) if arm is None else (arm.mean, arm.interval)
            line.append(Cell(text, value, interval, best=value is not None and model == best[task]))
        if averages:
            rank = averages.get(model)
            line.append(Cell("" if rank is None else f"{rank:.2f}", rank, best=rank == min(averages.values())))
        lines.append(line)
    return Table("All tasks: mean ± standard deviation over seeds", tuple(columns), tuple(map(tuple, lines)))


def value_text(arm: Arm) -> str:
    """Returns `0.6000 ± 0.1414`, or what became of the runs."""
    if arm.mean is None:
        return "/".join(dict.fromkeys("no number" if row.status == "done" else row.status for row in arm.rows))
    text = number(arm.mean) + (f" ± {number(arm.std)}" if arm.std is not None else "")
    diverged = sum(row.status == "diverged" for row in arm.rows)
    return f"{text} ({diverged} diverged)" if diverged else text


def metric_label(section: Section) -> str:
    """Returns `accuracy ↑`, and the split if it isn't the test's, on which results should be."""
    metric = section.metric
    if not metric:
        return "metric"
    unit = f" ({metric['unit']})" if metric.get("unit") and metric["unit"] != "fraction" else ""
    split = {"test": ", test", "valid": ", validation"}.get(section.split, "")
    return f"{metric['name']}{unit}{split} {'↑' if metric['higher_is_better'] else '↓'}"


def configuration(config: Mapping[str, Any]) -> str:
    """Returns `expand=16 short_conv=4 · GLU 165 · lr 0.01`: what a mixer was given besides its width."""
    backbone = config["backbone"]
    layers = [
        " ".join(f"{key}={show_value(v)}" for key, v in mixer.items() if key != "name")
        for mixer in pattern_of(backbone["mixer"])
    ]
    glu = backbone["channel_mixer"]
    width = "no GLU" if glu is None else f"GLU {glu['hidden'] or show_value(glu['multiplier']) + 'x'}"
    return " · ".join([*filter(None, layers), width, f"lr {show_value(config['train']['lr'])}"])


# By heading: the result's key, how it is written, and the column's rank.
NUMBERS: Mapping[str, tuple[str, Callable[[float], str], int]] = {
    "parameters": ("parameters", whole, 3),
    "state at T=1024": ("state_bytes", size, 3),
    "FLOPs/token": ("flops_per_token", whole, 5),
    "tokens/s": ("tokens_per_second", whole, 4),
    "seconds": ("seconds", short, 4),
    "peak memory": ("peak_memory_bytes", size, 5),
    "energy (J)": ("energy_joules", short, 5),
}


def _line(section: Section, arm: Arm, names: Sequence[str], chosen: Sequence[str]) -> list[Cell]:
    runs, got = len(arm.rows), len(arm.values)
    cells = [Cell(arm.mixer, arm.mixer)]
    for settings, paths in ((arm.variant, names), (arm.chosen, chosen)):
        cells += [Cell(show_value(settings[path]), settings[path]) if path in settings else Cell("") for path in paths]
    cells.append(Cell(value_text(arm), arm.mean, arm.interval, best=arm.label in section.best))
    cells.append(Cell(_interval(arm.interval, number), arm.mean))
    if section.baseline:
        cells += _compared(section.comparisons.get(arm.label))
    pooled = f" runs, {len(arm.by_seed)} seeds" if len(arm.by_seed) < got else ""
    cells.append(Cell((f"{got}" if got == runs else f"{got} of {runs}") + pooled, got))
    for key, write, _ in NUMBERS.values():
        average = arm.average(key)
        cells.append(Cell("" if average is None else write(average), average))
    cells.append(Cell(configuration(arm.rows[0].config)))
    return cells


def _measured(value: float | None) -> Cell:
    return Cell("" if value is None else short(value), value)


def _compared(comparison: Comparison | None) -> list[Cell]:
    if comparison is None:
        return [Cell(""), Cell(""), Cell("")]
    difference, interval, seeds, word = comparison
    told = word if seeds > 1 else f"{word} (1 seed)"
    return [Cell(signed(difference), difference), Cell(_interval(interval, signed), difference), Cell(told, word)]


def _interval(interval: Interval | None, write: Callable[[float], str]) -> str:
    return f"[{write(interval.low)}, {write(interval.high)}]" if interval else ""


def _without_empty(title: str, columns: Sequence[Column], lines: Sequence[Sequence[Cell]]) -> Table:
    kept = [index for index in range(len(columns)) if any(line[index].text for line in lines)]
    cells = tuple(tuple(line[index] for index in kept) for line in lines)
    return Table(title, tuple(columns[index] for index in kept), cells)


def _arrow(arm: Arm) -> str:
    return "↑" if arm.higher_is_better else "↓"
