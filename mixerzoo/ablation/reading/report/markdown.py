"""Writes results.md: the tables with everything that must be read beside them, and the figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mixerzoo.ablation.reading.ranking import unranked

from .contents import Report
from .origin import made_by
from .tables import Cell, Table, across, measured, results

if TYPE_CHECKING:
    from mixerzoo.ablation.reading.plots import Picture

LEGEND = (
    "Metrics are means ± standard deviations over seeds, the best in bold; intervals are 95 % bootstrap intervals of "
    "means, differences are paired by seed. Seconds include evaluation, tokens/s do not."
)


def markdown(report: Report, pictures: Sequence[Picture]) -> str:
    parts = ["# Results\n", *(f"{_escape(text)}\n" for text in (report.question, report.pooled) if text)]
    for section in report.sections:
        tables = [results(section), measured(section)]
        parts += [f"## {section.task}\n", *(_table(table) for table in tables if table is not None)]
        parts += _listed([f"**Warning:** {_escape(text)}" for text in section.warnings])
        parts += _listed([_escape(text) for text in section.problems])
        parts += [f"{_escape(note)}\n" for note in section.notes]
    if (tasks := across(report)) is not None:
        parts += ["## All tasks\n", _table(tasks), *(f"{_escape(note)}\n" for note in unranked(report.arms))]
    for picture in pictures:
        parts.append(f"![{picture.name}.png]({picture.name}.png)\n\n*{picture.title}.* {picture.caption}\n")
    return "\n".join([*parts, LEGEND, *made_by(report)]) + "\n"


def _table(table: Table) -> str:
    lines = [[_cell(cell) for cell in line] for line in table.lines]
    header = [_escape(column.name) for column in table.columns]
    align = ["---:" if column.number else "---" for column in table.columns]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, align, *lines]) + "\n"


def _cell(cell: Cell) -> str:
    return f"**{_escape(cell.text)}**" if cell.best else _escape(cell.text)


def _listed(sentences: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {sentence}" for sentence in sentences) + "\n"] * bool(sentences)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<").replace("*", "\\*")
