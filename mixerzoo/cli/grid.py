"""Grids on the command line: plan the runs, carry them out, print what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .screen import fail, make_console, number, split, stopped

if TYPE_CHECKING:
    from mixerzoo.tasks import RunConfig


def plan(
    mixers: list[str],
    tasks: list[str],
    seeds: list[int],
    settings: list[str],
    match: str,
    recipe: Sequence[tuple[str, Any]] = (),
) -> list[RunConfig]:
    """The runs that were asked for, checked and resolved down to their data. A recipe is laid under the settings."""
    from mixerzoo.ablation.grid import Grid, Setting, expand

    laid = (*(Setting.of(path, value) for path, value in recipe), *map(Setting.parse, settings))
    grid = Grid(tuple(mixers), tuple(tasks), tuple(seeds), laid)
    runs = expand(grid)
    if match == "none":
        return runs
    from mixerzoo.ablation.matching import match_parameters

    matches = match_parameters(runs, int(match) if match.isdigit() else match)
    for task in dict.fromkeys(run.task for run in runs):
        counted = [m for m in matches if m.run.task == task and m.parameters is not None]
        if not counted:
            continue
        worst = max(counted, key=lambda m: abs(m.mismatch))
        typer.echo(
            f"{task.name}: parameters matched to {worst.target:,}; "
            f"farthest is {worst.run.backbone.label} with {worst.parameters:,} ({worst.mismatch:+.2%})"
        )
    return [m.run for m in matches]


def carry_out(runs: list[RunConfig], directory: Path, workers: int | None, threads: int, *, plots: bool) -> None:
    from mixerzoo.ablation.arms import arms
    from mixerzoo.ablation.engine import run_pool, usable_cores
    from mixerzoo.ablation.progress import show_progress
    from mixerzoo.ablation.report import print_tables, write_report
    from mixerzoo.ablation.store import Store

    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"cannot write to {directory}: {error.strerror}")
    store, console = Store(directory), make_console()
    pending = [run for run in runs if not store.finished(run.run_id)]
    workers = min(workers or usable_cores(), len(pending))
    doing = f"{len(pending)} to do, {workers} at a time" if pending else "nothing to do"
    kept = len(runs) - len(pending)
    console.print(f"{len(runs)} runs in {directory}: {kept} finished before, {doing}", soft_wrap=True)
    try:
        if pending:
            with show_progress(pending, console) as observe:
                run_pool(pending, store, observe, workers=workers, threads=threads)
        stale = pending or not (directory / "results.md").exists()
        result = write_report(store, plots=plots) if stale else arms(store.rows())
    except KeyboardInterrupt:
        kept = sum(store.finished(run.run_id) for run in runs)
        stopped(f"{kept} of {len(runs)} runs are finished and kept")
    print_tables(result, console)
    console.print(f"written: {directory}/results.md, summary.csv, results.csv{', *.png' * plots}", soft_wrap=True)
    if not all(store.finished(run.run_id) for run in runs):
        raise typer.Exit(1)


def with_text(settings: list[str], text: Path | None) -> list[str]:
    """`--text` is short for a setting of the lm task."""
    return settings if text is None else [f"lm:task.path={str(text)!r}", *settings]


def parse_seeds(text: str) -> list[int]:
    """`3` is the seeds 0, 1, 2; `3,` or `3,7` are just those."""
    return [number(seed, "seed") for seed in split(text)] if "," in text else list(range(number(text, "seed count")))
