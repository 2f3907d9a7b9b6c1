"""Turns stored runs into tables on a terminal, Markdown, LaTeX, CSV, Parquet, one HTML page, and figures."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from mixerzoo.ablation.running.store import Store
from mixerzoo.tasks.files import write_atomically

from .contents import Report, read_report
from .latex import latex
from .markdown import markdown
from .page import page
from .spreadsheets import runs, summary, to_csv, write_parquet
from .terminal import print_tables

__all__ = ["Report", "print_tables", "read_report", "write_report"]


def write_report(
    *stores: Store,
    where: Iterable[str] = (),
    by: Iterable[str] = (),
    baseline: str | None = None,
    plots: bool = True,
) -> Report:
    """Reads what `read_report` does, and writes all of it into `Report.directory`.

    results.md, results.tex and report.html hold the tables; results.csv (and results.parquet, with pyarrow) every run;
    summary.csv every arm; `*.png` and figures/ the figures.
    """
    with _collector_paused():
        report = read_report(*stores, where=where, by=by, baseline=baseline)
        _write(report, plots=plots)
    return report


def _write(report: Report, *, plots: bool) -> None:
    directory = report.directory
    directory.mkdir(parents=True, exist_ok=True)
    records = runs(report)
    write_atomically(directory / "results.csv", to_csv(records))
    write_parquet(directory / "results.parquet", records)
    write_atomically(directory / "summary.csv", to_csv(summary(report)))
    write_atomically(directory / "results.tex", latex(report))
    pictures = []
    if plots:
        from mixerzoo.ablation.reading.plots import save

        pictures = save(report, directory)
    write_atomically(directory / "results.md", markdown(report, pictures))
    write_atomically(directory / "report.html", page(report, pictures))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pauses the collector: looking for garbage among ten thousand rows' million objects took a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
