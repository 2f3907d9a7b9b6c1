"""Writes report.html: the whole report as one page that needs no network, with figures, for light and dark screens."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from mixerzoo.ablation.formats import show_value
from mixerzoo.ablation.reading.columns import MIXER, heading, identity, settings
from mixerzoo.ablation.reading.ranking import unranked

from .contents import Report, Section
from .origin import SHOWN, command, origins
from .tables import LAST, Cell, Column, Table, across, measured, results

if TYPE_CHECKING:
    from mixerzoo.ablation.reading.plots import Picture

HERE = Path(__file__).parent
BROAD = 8.0  # inches from which a figure takes the whole line
MOST_VALUES = 12  # of a setting that differs
LEGEND = (
    "Metrics are means ± standard deviations over seeds, the best in colour. Intervals are 95 % bootstrap intervals of "
    "the mean; differences are paired by seed, and a verdict needs both that interval and Student's to exclude zero. "
    "Seconds include evaluation, tokens/s do not."
)


def page(report: Report, pictures: Sequence[Picture]) -> str:
    sections = [(_anchor(section.task), section.task, _section(section, pictures)) for section in report.sections]
    if (whole := _across(report, [picture for picture in pictures if not picture.task])) is not None:
        sections.append(("all-tasks", "All tasks", whole))
    sections.append(("configuration", "Configuration", _configuration(report)))
    sections.append(("provenance", "Provenance", _provenance(report)))
    links = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{escape(title)}</h2>{text}</section>' for name, title, text in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}: mixerzoo report</title>"
        f"<style>\n{(HERE / 'page.css').read_text(encoding='utf-8')}</style></head><body>\n"
        f"{_header(report)}<nav>{links}</nav><main>{body}</main><footer>{escape(LEGEND)}</footer>\n"
        f"<script>\n{(HERE / 'page.js').read_text(encoding='utf-8')}</script></body></html>\n"
    )


def _header(report: Report) -> str:
    lead = "".join(f'<p class="lead">{escape(text)}</p>' for text in (report.question, report.pooled) if text)
    finished, whole = report.statuses["done"], len(report.rows)
    tiles = [("runs", f"{whole:,}", ""), ("with a value", f"{finished:,}", "")]
    tiles += [(status, f"{count:,}", "bad") for status, count in report.statuses.items() if status != "done"]
    missing = sum(len(section.missing) for section in report.sections)
    tiles += [("missing", f"{missing}", "bad")] * bool(missing)
    left_out = sum(len(section.left_out) for section in report.sections)
    tiles += [("left out", f"{left_out}", "bad")] * bool(left_out)
    tiles += [("arms", f"{len(report.arms):,}", ""), ("tasks", f"{len(report.sections)}", "")]
    tiles.append(("seeds", f"{len({row.config['seed'] for row in report.rows})}", ""))
    items = "".join(f'<li class="{kind}"><b>{count}</b><span>{escape(what)}</span></li>' for what, count, kind in tiles)
    return f'<header><h1>{escape(report.title)}</h1>{lead}<ul class="tiles">{items}</ul></header>'


def _section(section: Section, pictures: Sequence[Picture]) -> str:
    tables = [_table(table) for table in (results(section), measured(section)) if table is not None]
    told = [_told(section.warnings, "warnings"), _told(section.problems, "problems"), _told(section.notes, "notes")]
    return "".join([*tables, *told, _figures([picture for picture in pictures if picture.task == section.task])])


def _across(report: Report, pictures: Sequence[Picture]) -> str | None:
    table = across(report)
    if table is None and not pictures:
        return None
    return (_table(table) if table is not None else "") + _told(unranked(report.arms), "notes") + _figures(pictures)


def _table(table: Table) -> str:
    """Writes a table, with a small drawing of its interval behind every mean that has one."""
    spans = [cell.interval for line in table.lines for cell in line if cell.interval is not None]
    low, high = min((s.low for s in spans), default=0.0), max((s.high for s in spans), default=0.0)
    drawn = [any(line[i].interval for line in table.lines) for i in range(len(table.columns))]
    drawn = drawn if sum(drawn) == 1 and high > low else [False] * len(drawn)
    headings = []
    for column, with_drawing in zip(table.columns, drawn, strict=True):
        kind = ' class="number"' if column.number else ""
        headings.append(f'<th scope="col"{kind}><button type="button">{escape(column.name)}</button></th>')
        headings += ["<th></th>"] * with_drawing
    lines = []
    for line in table.lines:
        cells = []
        for cell, column, with_drawing in zip(line, table.columns, drawn, strict=True):
            kind = " ".join(
                filter(None, ["number" * column.number, "best" * cell.best, "wordy" * (column.rank == LAST)])
            )
            cells.append(f'<td class="{kind}" data-value="{_value(cell)}">{escape(cell.text)}</td>')
            if with_drawing:
                cells.append(f"<td>{_whisker(cell, low, high)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table><caption>{escape(table.title)}</caption>'
        f"<thead><tr>{''.join(headings)}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _value(cell: Cell) -> str:
    return "" if cell.value is None else escape(str(cell.value))


def _whisker(cell: Cell, low: float, high: float) -> str:
    """Draws the interval as a line and the mean as a dot, on one scale for the table."""
    if cell.interval is None or not isinstance(cell.value, float):
        return ""
    ends = (cell.interval.low, cell.value, cell.interval.high)
    left, mean, right = (4 + 102 * (x - low) / (high - low) for x in ends)
    return (
        f'<svg class="whisker" viewBox="0 0 110 14" aria-hidden="true"><line x1="{left:.1f}" x2="{right:.1f}" y1="7" '
        f'y2="7"/><circle cx="{mean:.1f}" cy="7" r="3.2"/></svg>'
    )


def _told(sentences: Sequence[str], kind: str) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="told {kind}">{items}</ul>' if sentences else ""


def _figures(pictures: Iterable[Picture]) -> str:
    figures = "".join(_figure(picture) for picture in pictures)
    return f'<div class="figures">{figures}</div>' if figures else ""


def _figure(picture: Picture) -> str:
    kind = ' class="broad"' if picture.width > BROAD else ""
    return (
        f'<figure id="{picture.name}"{kind}>{_inline(picture)}'
        f"<figcaption><b>{escape(picture.title)}</b>{escape(picture.caption)}</figcaption></figure>"
    )


def _inline(picture: Picture) -> str:
    """Returns the SVG with names of its own, so that figures don't mix, and with the page's colours for its own."""
    from mixerzoo.ablation.reading.plots.style import COLOURS, FAINT, INK

    svg = re.sub(r'\bid="', f'id="{picture.name}-', picture.svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{picture.name}-", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    variables = {INK: "--ink", FAINT: "--faint", "#ffffff": "--page"}
    variables |= {colour: f"--c{index}" for index, colour in enumerate(COLOURS)}
    for colour, variable in variables.items():
        svg = re.sub(f"{colour}(?![0-9a-f])", f"var({variable})", svg, flags=re.IGNORECASE)
    root, _, rest = svg.partition(">")
    root = re.sub(r'\s(width|height)="[^"]*"', "", root)
    return f'{root} role="img" aria-label="{escape(picture.title)}">{rest}'


def _configuration(report: Report) -> str:
    """Writes what runs differ in, and what all of them have in common."""
    distinct = {identity(row): row for row in report.rows}  # seeds share their settings
    records = [settings(row) for row in distinct.values()]
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for path, value in record.items():
            values[path][show_value(value)] += 1
    common = {path: next(iter(own)) for path, own in values.items() if own.most_common(1)[0][1] == len(records)}
    seeds = sorted({row.config["seed"] for row in report.rows})
    values["seed"] = Counter(map(str, seeds))
    differing = {path: _listed(list(own)) for path, own in values.items() if path not in common or path == "seed"}
    for repeated in ("seed", "task.name", f"{MIXER}.name"):
        common.pop(repeated, None)
    for repeated in ("task.name", f"{MIXER}.name"):
        differing.pop(repeated, None)
    return (
        f"<h3>Differs between runs</h3>{_settings(differing)}"
        f"<details><summary>The same in all runs</summary>{_settings(common)}</details>"
    )


def _listed(values: Sequence[str]) -> str:
    rest = f" and {len(values) - MOST_VALUES:,} more" if len(values) > MOST_VALUES else ""
    return ", ".join(values[:MOST_VALUES]) + rest


def _settings(values: dict[str, str]) -> str:
    lines = "".join(
        f"<tr><td><code>{escape(heading(path))}</code></td><td>{escape(value)}</td></tr>"
        for path, value in sorted(values.items())
    )
    return f'<div class="scroll"><table class="settings"><tbody>{lines}</tbody></table></div>'


def _provenance(report: Report) -> str:
    found = origins(report)
    if not found:
        return "<p>No run has told where it comes from.</p>"
    columns = [
        Column("runs"),
        *(Column(key, number=False) for key in SHOWN),
        Column("command", number=False, rank=LAST),
    ]
    lines = []
    for origin, count in found:
        cells = [Cell(str(origin[key]), str(origin[key])) for key in SHOWN]
        lines.append((Cell(f"{count:,}", count), *cells, Cell(command(origin))))
    return _table(Table("Where the runs were made", tuple(columns), tuple(lines)))


def _anchor(task: str) -> str:
    return "task-" + "".join(character if character.isalnum() else "-" for character in task)
