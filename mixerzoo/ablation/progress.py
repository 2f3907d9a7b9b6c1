"""What the user sees while a grid runs: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mixerzoo.tasks import RunConfig

from . import worker
from .engine import Event, Started
from .worker import Finished

LINE_EVERY = 15.0


@contextmanager
def show_progress(runs: Sequence[RunConfig], console: Console) -> Iterator[Callable[[Event], None]]:
    """An observer for `run_pool` that draws what happens to these runs while the block lasts."""
    if not console.is_terminal:
        yield _Lines(runs, console).observe
        return
    table = _LiveTable(runs, console)
    with Live(get_renderable=table.render, console=console, refresh_per_second=4):
        yield table.observe


def describe(run: RunConfig) -> str:
    return f"{run.task.name} {run.backbone.label} seed {run.seed}"


def outcome(run: RunConfig, finished: Finished) -> str:
    """`accuracy 0.9812 in 24 s`, or what went wrong."""
    result = finished.result
    if result["status"] == "done":
        return f"{run.task.metric.name} {result['value']:.4f} in {result['seconds']:.0f} s"
    if result["status"] == "diverged":
        return f"diverged at step {result['steps']}"
    return f"failed: {result['error']}"


class _Lines:
    """One line when a run starts and ends, and one now and then between."""

    def __init__(self, runs: Sequence[RunConfig], console: Console) -> None:
        self.runs = {run.run_id: run for run in runs}
        self.console = console
        self.ended = 0
        self.last_line: dict[str, float] = {}

    def observe(self, event: Event) -> None:
        run = self.runs[event.run_id]
        if isinstance(event, Started):
            self._print(run, "started")
        elif isinstance(event, Finished):
            self.ended += 1
            self._print(run, outcome(run, event))
        elif monotonic() - self.last_line[event.run_id] > LINE_EVERY:
            rate = f"{event.tokens_per_second:,.0f} tokens/s"
            self._print(run, f"step {event.step}/{run.train.steps}, loss {event.loss:.3f}, {rate}")

    def _print(self, run: RunConfig, text: str) -> None:
        self.last_line[run.run_id] = monotonic()
        width = len(str(len(self.runs)))
        line = f"[{self.ended:>{width}}/{len(self.runs)}] {describe(run)}: {text}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class _LiveTable:
    """A row per running run, and a bar over the steps of all of them."""

    def __init__(self, runs: Sequence[RunConfig], console: Console) -> None:
        self.runs = {run.run_id: run for run in runs}
        self.console = console
        self.running: dict[str, worker.Progress | None] = {}
        self.last_metric: dict[str, float] = {}
        self.steps_done: dict[str, int] = {}
        self.total = Progress(
            TextColumn("all steps"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("· left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            speed_estimate_period=120,
            console=console,
        )
        self.bar = self.total.add_task("steps", total=sum(run.train.steps for run in runs))

    def observe(self, event: Event) -> None:
        run = self.runs[event.run_id]
        if isinstance(event, Started):
            self.running[event.run_id] = None
        elif isinstance(event, Finished):
            self.running.pop(event.run_id, None)
            self.steps_done[event.run_id] = run.train.steps
            good = event.result["status"] == "done"
            self.console.print(f"{'✓' if good else '✗'} {describe(run)}: {outcome(run, event)}", markup=False)
        else:
            self.running[event.run_id] = event
            self.steps_done[event.run_id] = event.step
            if event.metric is not None:
                self.last_metric[event.run_id] = event.metric
        self.total.update(self.bar, completed=sum(self.steps_done.values()))

    def render(self) -> Group:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for header in ("running", "step", "loss", "metric", "tokens/s", "left"):
            table.add_column(header, justify="left" if header == "running" else "right", no_wrap=True)
        for run_id, progress in self.running.items():
            run = self.runs[run_id]
            cells = _cells(run, progress, self.last_metric.get(run_id)) if progress else ("starting",)
            table.add_row(describe(run), *cells)
        return Group(table, self.total)


def _cells(run: RunConfig, progress: worker.Progress, metric: float | None) -> tuple[str, ...]:
    left = progress.seconds / progress.step * (run.train.steps - progress.step)
    return (
        f"{progress.step}/{run.train.steps}",
        f"{progress.loss:.3f}",
        "" if metric is None else f"{run.task.metric.name} {metric:.3f}",
        f"{progress.tokens_per_second:,.0f}",
        f"{left:.0f} s",
    )
