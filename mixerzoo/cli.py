"""The command line: reads arguments, calls the package, prints. Imports of weight happen inside the commands."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from mixerzoo.tasks import RunConfig

app = typer.Typer(
    help="Compare sequence mixers honestly: the same task, data, training and number of parameters.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

check = typer.Typer(help="Prove things about the package itself.", rich_markup_mode=None)
app.add_typer(check, name="check")

Settings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="[PREFIX:]PATH=VALUE",
        help="Change a setting of every run, or of one mixer or task: train.lr=1e-2, mqar:train.steps=900. Repeatable.",
    ),
]
RunsDir = Annotated[Path, typer.Option(help="Where results go.")]
Match = Annotated[
    str, typer.Option(help="Match parameters to this mixer's model, or a number.", metavar="MIXER|NUMBER|none")
]


@app.command("list")
def list_command() -> None:
    """Name every mixer and task."""
    from mixerzoo import list_mixers, mixer_info
    from mixerzoo.tasks import list_tasks

    for name in list_mixers():
        spec = mixer_info(name)
        typer.echo(f"{name:<12} {spec.paper:<18} {spec.equation}")
    typer.echo(f"tasks: {', '.join(list_tasks())}")


@app.command()
def show(mixer: str) -> None:
    """Print what is known about a mixer: paper, equation, state, cost, capabilities."""
    from dataclasses import fields

    from mixerzoo import mixer_info

    with _mistakes():
        spec = mixer_info(mixer)
    for field in fields(spec):
        value = getattr(spec, field.name)
        text = ", ".join(sorted(value)) if isinstance(value, (tuple, frozenset)) else str(value)
        typer.echo(f"{field.name:<13} {text}")


@app.command()
def ablate(
    mixers: Annotated[str, typer.Option(help="Names with commas between; a+b tiles a pattern over the depth.")] = "all",
    tasks: Annotated[str, typer.Option(help="Names with commas between.")] = "lm,mqar",
    seeds: Annotated[str, typer.Option(help="How many, from 0 on; or the seeds themselves, commas between.")] = "2",
    text: Annotated[Path | None, typer.Option(help="A text of your own for the lm task.")] = None,
    settings: Settings = [],  # noqa: B006 (typer's way to say: none given)
    match: Match = "attention",
    name: Annotated[str, typer.Option(help="Results go to RUNS_DIR/NAME.")] = "default",
    runs_dir: RunsDir = Path("runs"),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; as many as cores by default.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads per process.")] = 1,
    plots: Annotated[bool, typer.Option(help="Draw the plots.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs and stop.")] = False,
) -> None:
    """Train every mixer on every task with every seed, and compare. Finished runs are skipped."""
    from mixerzoo import list_mixers

    if text is not None:
        settings = [f"lm:task.path={str(text)!r}", *settings]
    names = list_mixers() if mixers == "all" else _split(mixers)
    with _mistakes():
        runs = _plan(names, _split(tasks), _seeds(seeds), settings, match)
    if dry_run:
        for run in runs:
            typer.echo(run.run_id)
        return
    _carry_out(runs, runs_dir / name, workers, threads, plots=plots)


@app.command()
def train(
    mixer: str,
    task: Annotated[str, typer.Option(help="What to train on.")] = "lm",
    seed: Annotated[int, typer.Option(help="Decides weights and batches.")] = 0,
    text: Annotated[Path | None, typer.Option(help="A text of your own for the lm task.")] = None,
    settings: Settings = [],  # noqa: B006 (typer's way to say: none given)
    match: Match = "none",
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Train one mixer on one task, on all cores."""
    from mixerzoo.ablation.engine import usable_cores

    if text is not None:
        settings = [f"lm:task.path={str(text)!r}", *settings]
    with _mistakes():
        runs = _plan([mixer], [task], [seed], settings, match)
    _carry_out(runs, runs_dir / "train", 1, usable_cores(), plots=True)


@app.command()
def report(run_dir: Path, plots: Annotated[bool, typer.Option(help="Draw the plots.")] = True) -> None:
    """Print the results table of a directory, and write its tables and plots again."""
    from mixerzoo.ablation.report import print_tables, write_report
    from mixerzoo.ablation.store import Store

    with _mistakes():
        arms = write_report(Store(run_dir), plots=plots)
    print_tables(arms, _console())


@check.command()
def kernels(
    target: Annotated[list[str], typer.Option(help="sm_80, sm_90 or gfx942. Repeatable; all by default.")] = [],  # noqa: B006
    op: Annotated[str | None, typer.Option(help="Only this op's kernels.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; as many as cores by default.")] = None,
) -> None:
    """Compile every kernel for GPUs that needn't be here; count the bytes that ops move. Fails if one doesn't fit."""
    from mixerzoo.ablation.engine import usable_cores
    from mixerzoo.kernels.check_compile import TARGETS
    from mixerzoo.kernels.check_table import bytes_table, compile_all, compiled_table, count_all

    workers, console = workers or usable_cores(), _console()
    with _mistakes():
        compiled = compile_all(target or TARGETS, op, workers, _counting("compiled"))
    console.print(compiled_table(compiled))
    counted = count_all(op, workers, _counting("ops run"))
    console.print("", bytes_table(counted))
    if bad := [row for row in compiled if not row.good]:
        for row in bad:
            if isinstance(row.result, str):
                typer.echo(f"{row.kernel}, {row.configuration}, {row.target}: {row.result}", err=True)
        console.print(f"\n{len(bad)} of {len(compiled)} spill, exceed the shared memory, or don't compile")
        raise typer.Exit(1)
    console.print(f"\nall {len(compiled)} fit: nothing spilled, shared memory within every chip's limit")


def main() -> None:
    """The entry point: one line on stderr for a mistake of the user's, exit code 2; 130 after Ctrl-C."""
    usage_error: Any = typer.BadParameter.__base__  # click's UsageError, wherever this version of typer keeps it
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False))
    except usage_error as error:
        _fail(error.format_message())
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("stopped", err=True)
        sys.exit(130)


def _plan(mixers: list[str], tasks: list[str], seeds: list[int], settings: list[str], match: str) -> list[RunConfig]:
    """The runs that were asked for, checked and resolved down to their data."""
    from mixerzoo.ablation.grid import Grid, Setting, expand

    grid = Grid(tuple(mixers), tuple(tasks), tuple(seeds), tuple(map(Setting.parse, settings)))
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


def _carry_out(runs: list[RunConfig], directory: Path, workers: int | None, threads: int, *, plots: bool) -> None:
    from mixerzoo.ablation.arms import arms
    from mixerzoo.ablation.engine import run_pool, usable_cores
    from mixerzoo.ablation.progress import show_progress
    from mixerzoo.ablation.report import print_tables, write_report
    from mixerzoo.ablation.store import Store

    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _fail(f"cannot write to {directory}: {error.strerror}")
    store, console = Store(directory), _console()
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
        again = shlex.join(["mixerzoo", *sys.argv[1:]])
        typer.echo(f"stopped: {kept} of {len(runs)} runs are finished and kept; to go on: {again}", err=True)
        raise typer.Exit(130) from None
    print_tables(result, console)
    console.print(f"written: {directory}/results.md, summary.csv, results.csv{', *.png' * plots}", soft_wrap=True)
    if not all(store.finished(run.run_id) for run in runs):
        raise typer.Exit(1)


def _counting(what: str) -> Callable[[int, int], None]:
    """Shows `12/345 compiled` on one line of a terminal; elsewhere a line now and then."""

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            typer.echo(f"\r\033[K{done}/{total} {what}" if done < total else "\r\033[K", nl=False, err=True)
        elif done in (0, total) or done % 50 == 0:
            typer.echo(f"{done}/{total} {what}", err=True)

    return progress


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


@contextmanager
def _mistakes() -> Iterator[None]:
    """Inside, a ValueError is the user's mistake: what was asked for is being resolved, and nothing has run yet."""
    try:
        yield
    except ValueError as error:
        _fail(str(error))


def _fail(message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    sys.exit(2)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _seeds(text: str) -> list[int]:
    """`3` is the seeds 0, 1, 2; `3,` or `3,7` are just those."""
    return [_number(seed, "seed") for seed in _split(text)] if "," in text else list(range(_number(text, "seed count")))


def _number(text: str, what: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"a {what} must be a whole number, got {text!r}") from None
