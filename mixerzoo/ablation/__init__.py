"""Runs grids of trainings: expand, match, search, carry out, store, report.

from mixerzoo.ablation import Grid, ablate

report = ablate(Grid.of(mixers=["hgrn2", "gla"], tasks=["mqar"], vary={"train.lr": [3e-3, 1e-2]}), "runs/first")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .question.grid import Grid
    from .reading.report import Report
    from .running.engines import Engine

__all__ = ["Grid", "ablate"]


def ablate(grid: Grid, directory: str | Path, engine: Engine | None = None, *, plots: bool = True) -> Report:
    """Does what is missing of a grid's runs in a directory, by default on this machine's cores or GPUs, and reports.

    Raises whatever `plan` raises.
    """
    from .question.plan import plan
    from .reading.report import write_report
    from .running.carry_out import carry_out
    from .running.engines.local import LocalEngine
    from .running.store import Store

    store = Store(directory)
    carry_out(plan(grid), store, engine or LocalEngine(), lambda event: None)
    return write_report(store, plots=plots)


def __getattr__(name: str) -> Any:
    """Imports torch only for those who use it; a report doesn't need it."""
    if name != "Grid":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .question.grid import Grid

    return Grid
