"""Draws the figures of a report, each only where the runs support it; nothing else of a grid imports matplotlib."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG

from mixerzoo.ablation.reading.ranking import average_ranks, task_labels

from .across import heat_map, rank_diagram
from .curves import curves
from .maps import maps
from .quality import qualities
from .sensitivity import sensitivities
from .series import series
from .style import SETTINGS, Drawing, styles
from .varied import varied

if TYPE_CHECKING:
    from mixerzoo.ablation.reading.arms import Arm
    from mixerzoo.ablation.reading.report.contents import Report

__all__ = ["Drawing", "Picture", "draw", "save"]

FOLDER = "figures"
DPI = 150


class Picture(NamedTuple):
    """Holds a figure that was saved: SVG text for a page, and what a page says of it."""

    name: str
    title: str
    caption: str
    task: str
    svg: str
    width: float
    height: float


def draw(report: Report) -> list[Drawing]:
    """Draws all figures that the report's runs support: those of every task, then those over all of them."""
    with rc_context(SETTINGS):
        return [drawing for drawing in _drawings(report) if drawing is not None]


def _drawings(report: Report) -> list[Drawing | None]:
    looks = styles(report.arms)
    found: list[Drawing | None] = []
    by_task: dict[str, Sequence[Arm]] = {}
    for section in report.sections:
        valued = [arm for arm in section.arms if arm.values]
        if not valued:
            continue
        by_task[section.task] = valued
        found += [curves(section.task, valued, looks), *varied(section.task, section.arms, looks)]
        found += [
            *sensitivities(section.task, section.arms, section.choices, looks),
            *series(section.task, valued, looks),
        ]
        found.append(maps(section.task, valued))
    found += [*qualities(by_task, looks), heat_map(report.arms)]
    found.append(rank_diagram(average_ranks(report.arms), len(task_labels(report.arms))))
    return found


def save(report: Report, directory: Path) -> list[Picture]:
    """Draws, and writes `<name>.png` for Markdown, `figures/<name>.svg` and `.pdf` for papers."""
    (directory / FOLDER).mkdir(parents=True, exist_ok=True)
    pictures = []
    with rc_context(SETTINGS):
        for drawing in draw(report):
            # Printed by the formats' own canvases: savefig lays a figure out twice, once more for every format.
            figure, text = drawing.figure, StringIO()
            FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
            figure.set_layout_engine("none")
            (directory / FOLDER / f"{drawing.name}.svg").write_text(text.getvalue(), encoding="utf-8")
            FigureCanvasPdf(figure).print_pdf(
                directory / FOLDER / f"{drawing.name}.pdf", metadata={"CreationDate": None}
            )
            figure.set_dpi(DPI)
            FigureCanvasAgg(figure).print_png(directory / f"{drawing.name}.png")
            svg = re.sub(r"^.*?(?=<svg)", "", text.getvalue(), count=1, flags=re.DOTALL)
            pictures.append(Picture(*drawing.words, svg, *figure.get_size_inches()))
    return pictures
