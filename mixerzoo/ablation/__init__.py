"""Grids of training runs: expand, match, search, carry out, store, report.

from mixerzoo.ablation import Grid, ablate

report = ablate(Grid.of(mixers=["hgrn2", "gla"], tasks=["mqar"], vary={"train.lr": [3e-3, 1e-2]}), "runs/first")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .grid import Grid
    from .plan import ablate

__all__ = ["Grid", "ablate"]


def __getattr__(name: str) -> Any:
    """Imports torch only for those who use them; a report doesn't need it."""
    if name == "Grid":
        from .grid import Grid

        return Grid
    if name == "ablate":
        from .plan import ablate

        return ablate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
