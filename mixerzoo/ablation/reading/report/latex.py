"""Writes results.tex: booktabs tables for a paper to \\input, best in bold, ± the 95 % interval."""

from __future__ import annotations

import re

from mixerzoo.ablation.formats import number

from .contents import Report
from .tables import INTERVAL, Cell, Table, across, results

MOST_RANK = 3  # of the columns that a page has room for
SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
}
CAPTION = "Means over seeds, $\\pm$ the wider side of the 95\\,\\% bootstrap interval of the mean; the best is bold."


def latex(report: Report) -> str:
    """Writes a table environment a task, and one over all tasks where there are several."""
    tables = [(section.task, results(section)) for section in report.sections]
    if (tasks := across(report)) is not None:
        tables.append(("all tasks", tasks))
    return "\n".join(["% needs \\usepackage{booktabs}", *(_environment(task, table) for task, table in tables)])


def escape(text: str) -> str:
    """Returns text that LaTeX sets as it is; what its fonts lack is a question mark."""
    return "".join(SPECIAL.get(character, character if ord(character) < 0x180 else "?") for character in text)


def _environment(task: str, table: Table) -> str:
    dropped = [i for i, column in enumerate(table.columns) if column.rank > MOST_RANK or column.name == INTERVAL]
    table = table.without(*dropped)
    lines = [
        r"\begin{table}[t]",
        r"  \centering",
        rf"  \caption{{{escape(task)}. {CAPTION}}}",
        rf"  \label{{tab:{''.join(c if c.isalnum() else '-' for c in task)}}}",
        rf"  \begin{{tabular}}{{{''.join('r' if column.number else 'l' for column in table.columns)}}}",
        r"    \toprule",
        _row([escape(column.name) for column in table.columns]),
        r"    \midrule",
        *(_row([_cell(cell) for cell in line]) for line in table.lines),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return f"    {' & '.join(cells)} \\\\"


def _cell(cell: Cell) -> str:
    text = f"${cell.text}$" if re.fullmatch(r"[+-][\d.]+", cell.text) else escape(cell.text)
    if cell.interval is not None and isinstance(cell.value, float):
        side = max(cell.interval.high - cell.value, cell.value - cell.interval.low)
        mean, around = number(cell.value).replace(",", "{,}"), number(side).replace(",", "{,}")
        text = rf"${mean} \pm {around}$"
        return rf"$\mathbf{{{mean}}} \pm {around}$" if cell.best else text
    return rf"\textbf{{{text}}}" if cell.best else text
