"""Prints the report on a terminal: a table a task with as many columns as fit, and below it what to know."""

from __future__ import annotations

from textwrap import wrap

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from mixerzoo.ablation.reading.ranking import unranked

from .contents import Report
from .tables import Table, across, measured, results

GAP = 3  # characters between two columns
MOST_LINES = 40
MOST_SENTENCES = 20


def print_tables(report: Report, console: Console) -> None:
    """Prints every task's table, its warnings, its runs without a value and how its numbers arose."""
    if report.pooled:
        console.print(Text(report.pooled, style="dim"), soft_wrap=True)
    for section in report.sections:
        _print(results(section), console)
        if (besides := measured(section)) is not None:
            _print(besides, console)
        _sentences(section.warnings, "warning: ", "yellow", console)
        _sentences(section.problems, "", "red", console)
        _sentences(section.notes, "", "dim", console)
    if (tasks := across(report)) is not None:
        _print(tasks, console)
        _sentences(unranked(report.arms), "", "dim", console)


def _print(table: Table, console: Console) -> None:
    table = _fitted(table, console.width)
    grid = Grid(title=table.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1))
    fits = _width(table) <= console.width
    for column, width in zip(table.columns, _widths(table), strict=True):
        name = "\n".join(wrap(column.name, width))
        grid.add_column(Text(name), justify="right" if column.number else "left", overflow="fold", no_wrap=fits)
    for line in table.lines[:MOST_LINES]:
        grid.add_row(*(Text(cell.text, style="bold green" if cell.best else "") for cell in line))
    console.print(grid)
    if len(table.lines) > MOST_LINES:
        rest = len(table.lines) - MOST_LINES
        console.print(Text(f"and {rest:,} more, in summary.csv and report.html", style="dim"), soft_wrap=True)


def _fitted(table: Table, width: int) -> Table:
    """Drops the columns of the highest ranks as long as the table is wider than the terminal."""
    while _width(table) > width and any(column.rank for column in table.columns):
        index = max(range(len(table.columns)), key=lambda i: (table.columns[i].rank, i))
        table = table.without(index)
    return table


def _width(table: Table) -> int:
    return sum(width + GAP for width in _widths(table)) + 1


def _widths(table: Table) -> list[int]:
    """Returns the widths of columns: headings may break between words, cells don't."""
    words = [[*column.name.split(), *(line[i].text for line in table.lines)] for i, column in enumerate(table.columns)]
    return [max(map(len, own)) for own in words]


def _sentences(sentences: list[str], prefix: str, style: str, console: Console) -> None:
    for sentence in sentences[:MOST_SENTENCES]:
        console.print(Text(prefix + sentence, style=style), soft_wrap=True)
    if len(sentences) > MOST_SENTENCES:
        rest = len(sentences) - MOST_SENTENCES
        console.print(Text(f"and {rest:,} more, in results.md", style=style), soft_wrap=True)
