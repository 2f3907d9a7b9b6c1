"""The command line trains a timm model with a progress bar, and starts timm's own scripts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .screen import make_console, mistakes, stopped

if TYPE_CHECKING:
    from mixerzoo.tasks.vision.training import Progress, Trainer


def train_model(options: dict[str, Any], out: Path | None, runs_dir: Path) -> None:
    """Resolves a run, trains or resumes it, and prints its test accuracy. `options` are those of `recipe.resolve`."""
    with mistakes():
        from mixerzoo.tasks.vision.recipe import resolve
        from mixerzoo.tasks.vision.training import Trainer

        run = resolve(**options)
        trainer = Trainer(run, out or runs_dir / "vision" / run.run_id, sys.argv)
    first = trainer.accelerator.is_main_process
    console = make_console(quiet=not first)
    name, done = run.model["name"], len(trainer.history)
    console.print(f"{name} on {run.data.name} in {trainer.out}, {done} epochs finished before", soft_wrap=True)
    try:
        _show(trainer, console)
    except KeyboardInterrupt:
        stopped(f"{len(trainer.history)} of {trainer.epochs} epochs are finished and kept")
    result = trainer.result or {}
    if result.get("status") != "done":
        console.print(f"diverged in epoch {result.get('epochs')}: the loss is no longer a number")
        raise typer.Exit(1)
    console.print(
        f"top-1 {result['test']['top1']:.2f} % on the {result['images']['test']} {result['tested_on']} images "
        f"(epoch {result['best_epoch']}, last epoch {result['test_last_epoch']['top1']:.2f} %), "
        f"{result['parameters']:,} parameters, {result['seconds']:.0f} s",
        soft_wrap=True,
    )
    if "top1" in run.published:
        console.print(f"published: top-1 {run.published['top1']:.2f} %", soft_wrap=True)
    console.print(f"written: {trainer.out}/result.json, history.json, best.pth, last.pth", soft_wrap=True)


def run_timm_script(script: str, arguments: list[str]) -> None:
    """Runs timm's `script` with the zoo's models registered; the first argument may be its path."""
    with mistakes():
        from mixerzoo.tasks.vision.timm_scripts import find_script, run_script

        path, arguments = find_script(script, arguments)
    run_script(path, arguments)


def _show(trainer: Trainer, console: Any) -> None:
    """Shows a bar over all updates on a terminal; everywhere a line for each epoch."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("· left"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        total = trainer.epochs * trainer.updates
        task = bar.add_task("training", total=total, completed=len(trainer.history) * trainer.updates)
        for progress in trainer.run():
            done = (progress.epoch - 1) * progress.steps + progress.step
            bar.update(task, completed=done, description=f"epoch {progress.epoch}, loss {progress.loss:.3f}")
            if progress.valid is not None:
                console.print(_line(progress), soft_wrap=True)


def _line(progress: Progress) -> str:
    assert progress.valid is not None
    return (
        f"epoch {progress.epoch:>{len(str(progress.epochs))}}/{progress.epochs}: loss {progress.loss:.3f}, "
        f"validation {progress.valid['top1']:.2f} %, {progress.images_per_second:,.0f} images/s"
    )
