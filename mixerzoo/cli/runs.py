"""`mixerzoo train` and `ablate` share these steps, for one run or many: the plan, the engine, the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .screen import fail, make_console, number, split, stopped

if TYPE_CHECKING:
    from mixerzoo.ablation.question.plan import Plan
    from mixerzoo.ablation.running.engines import Engine


@dataclass(frozen=True)
class Asked:
    """Holds the command line's options on how to carry out runs."""

    engine: str = "local"
    workers: int | None = None
    threads: int = 1
    address: str = "auto"
    gpus: float = 0
    job: tuple[str, ...] = ()
    processes: int = 1
    retry_out_of_memory: bool = False
    track: tuple[str, ...] = ()

    def build(self, planned: Plan) -> Engine:
        """Builds the engine.

        Raises ValueError for an unknown engine or tracker, and for an option of another engine.
        """
        from mixerzoo.ablation.running.engines.local import LocalEngine
        from mixerzoo.ablation.running.execute import Options
        from mixerzoo.ablation.running.trackers import check_trackers
        from mixerzoo.registry.registry import unknown
        from mixerzoo.tasks.config import parse_setting

        check_trackers(self.track)
        for option, (given, engine) in {
            "address": (self.address != "auto", "ray"),
            "gpus": (self.gpus != 0, "ray"),
            "job": (bool(self.job), "slurm"),
        }.items():
            if given and self.engine != engine:
                raise ValueError(
                    f"--{option} is for --engine {engine}, got --engine {self.engine}; remedy: leave it out"
                )
        options = Options(retry_out_of_memory=self.retry_out_of_memory, trackers=self.track, processes=self.processes)
        workers = 1 if any(run.task.alone for run in planned.runs) else self.workers
        if self.engine == "local":
            return LocalEngine(workers, self.threads, options)
        if self.engine == "ray":
            from mixerzoo.ablation.running.engines.ray import RayEngine

            return RayEngine(self.address, self.threads, self.gpus, workers, options=options)
        if self.engine == "slurm":
            from mixerzoo.ablation.running.engines.slurm import SlurmEngine

            return SlurmEngine(dict(map(parse_setting, self.job)), workers, self.threads, options=options)
        raise ValueError(unknown("engine", self.engine, ("local", "ray", "slurm")))


def make_plan(values: Mapping[str, Any]) -> Plan:
    """Returns a grid's runs, checked and resolved down to their data.

    Prints what was made equal, and what was left out.
    """
    from mixerzoo.ablation.question.grid import Grid
    from mixerzoo.ablation.question.plan import describe_matching, plan

    planned = plan(Grid.of(**values))
    for line in (*describe_matching(planned), *map(str, planned.left_out)):
        typer.echo(line)
    return planned


def show_costs(planned: Plan, workers: int | None, threads: int) -> None:
    """Prints a dry run: every run with its expected cost."""
    import torch

    from mixerzoo.ablation.question.dry_run import cost_table, summary
    from mixerzoo.tasks.cores import usable_cores

    torch.set_num_threads(threads)
    console = make_console()
    table, seconds = cost_table(planned)
    console.print(table)
    console.print(summary(planned, seconds, workers or usable_cores()), soft_wrap=True)


def carry_out(planned: Plan, directory: Path, engine: Engine, *, plots: bool) -> None:
    """Carries out a plan's missing runs, writes its report and prints it. Exits with 1 if a run is still missing."""
    from mixerzoo.ablation.question.plan import describe
    from mixerzoo.ablation.reading.report import print_tables, read_report, write_report
    from mixerzoo.ablation.running.carry_out import carry_out, expected, finished
    from mixerzoo.ablation.running.engines import CannotStart
    from mixerzoo.ablation.running.progress import show_progress
    from mixerzoo.ablation.running.store import Store

    store, console = Store(directory), make_console()
    (before, _), (pending, steps) = finished(planned, store), expected(planned, store)
    doing = f"{pending} to do" if pending else "nothing to do"
    console.print(f"{describe(planned)} in {directory}: {before} finished before, {doing}", soft_wrap=True)
    changed = False
    try:
        with show_progress(pending, steps, console) as observe:
            changed = carry_out(planned, store, engine, observe)
        stale = changed or not (directory / ("figures" if plots else "results.md")).exists()
        report = write_report(store, plots=plots) if stale else read_report(store)
    except KeyboardInterrupt:
        ended, known = finished(planned, store)
        stopped(f"{ended} of {known} runs are finished and kept")
    except CannotStart as error:
        fail(str(error))
    except OSError as error:
        fail(f"cannot write to {directory}: {error.strerror}; what is finished is kept")
    print_tables(report, console)
    console.print(
        f"written: {report.directory}/report.html, results.md, *.tex, *.csv{', figures' * plots}", soft_wrap=True
    )
    ended, known = finished(planned, store)
    if ended < known:
        raise typer.Exit(1)


def written(directory: Path, plots: bool) -> str:
    """Returns a line that names a report's files."""
    return f"written: {directory}/report.html, results.md, results.tex, *.csv{', figures' * plots}"


def with_text(settings: list[str], text: Path | None) -> list[str]:
    """Returns the settings and, before them, `--text` as a setting of the lm task."""
    return settings if text is None else [f"lm:task.path={str(text)!r}", *settings]


def parse_seeds(text: str) -> list[int]:
    """Reads `3` as the seeds 0, 1, 2, and `3,` or `3,7` as just those."""
    return [number(seed, "seed") for seed in split(text)] if "," in text else list(range(number(text, "seed count")))
