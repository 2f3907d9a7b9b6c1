"""Shows a grid while it runs: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mixerzoo.tasks import RunConfig

from .events import Event, Finished, Planned, Started
from .events import Progress as Step

LINE_EVERY = 15.0


@contextmanager
def show_progress(runs: int, steps: int, console: Console) -> Iterator[Callable[[Event], None]]:
    """Gives an observer that draws what happens while the block lasts.

    So many runs are expected, of so many steps in all.
    """
    if not console.is_terminal:
        yield _Lines(runs, console).observe
        return
    table = _LiveTable(steps, console)
    with Live(get_renderable=table.render, console=console, refresh_per_second=4):
        yield table.observe


def describe(run: RunConfig) -> str:
    return f"{run.task.name} {run.backbone.label} seed {run.seed}"


def outcome(run: RunConfig, finished: Finished) -> str:
    """Returns `accuracy 0.9812 in 24 s`, or what went wrong."""
    result = finished.result
    if result["status"] == "done":
        value = "not finite" if result["value"] is None else f"{result['value']:.4f}"
        return f"{run.task.metric.name} {value} in {result['seconds']:.0f} s"
    if result["status"] == "diverged":
        return f"diverged at step {result['steps']}"
    if result["status"] == "stopped":
        return f"given up at step {result['steps']}"
    return f"{result['status']}: {result['error']}"


class _Lines:
    """Prints one line when a run starts and ends, and one now and then between."""

    def __init__(self, expected: int, console: Console) -> None:
        self.runs: dict[str, RunConfig] = {}
        self.expected, self.ended = expected, 0
        self.console = console
        self.last_line: dict[str, float] = {}

    def observe(self, event: Event) -> None:
        if isinstance(event, Planned):
            self.runs[event.run_id] = event.run
            return
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
        width = len(str(self.expected))
        line = f"[{self.ended:>{width}}/{self.expected}] {describe(run)}: {text}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class _LiveTable:
    """Shows a row per running run, and a bar over the steps of all of them."""

    def __init__(self, steps: int, console: Console) -> None:
        self.runs: dict[str, RunConfig] = {}
        self.console = console
        self.running: dict[str, Step | None] = {}
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
        self.bar = self.total.add_task("steps", total=steps)

    def observe(self, event: Event) -> None:
        if isinstance(event, Planned):
            self.runs[event.run_id] = event.run
            return
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


def _cells(run: RunConfig, progress: Step, metric: float | None) -> tuple[str, ...]:
    left = progress.seconds / progress.step * (run.train.steps - progress.step)
    return (
        f"{progress.step}/{run.train.steps}",
        f"{progress.loss:.3f}",
        "" if metric is None else f"{run.task.metric.name} {metric:.3f}",
        f"{progress.tokens_per_second:,.0f}",
        f"{left:.0f} s",
    )
