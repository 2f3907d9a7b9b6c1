"""`mixerzoo ablate` takes a question from a file, a study or options; it prints its cost, runs it and reports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    Address,
    Engine,
    Gpus,
    Job,
    Match,
    Processes,
    RetryOutOfMemory,
    RunsDir,
    Settings,
    Solve,
    Text,
    Track,
    Workers,
)
from .runs import Asked, carry_out, make_plan, parse_seeds, show_costs, with_text
from .screen import mistakes, split

DEFAULTS = {"mixers": "all", "tasks": ["lm", "mqar"], "seeds": 2, "match": "params"}
Axes = Annotated[
    list[str],
    typer.Option(
        "--vary",
        metavar="[PREFIX:]PATH=VALUES",
        help="Compare values: mixer.expand=16,64; or of settings together: task.length,train.steps=[64,500],[256,2000]."
        " Repeatable.",
    ),
]
Tuned = Annotated[
    list[str],
    typer.Option(
        "--tune",
        metavar="PATH=VALUES",
        help="Choose from values on validation, alike for all: train.lr=1e-3,3e-3, or 1e-4..1e-1. Repeatable.",
    ),
]


def ablate(
    question: Annotated[str | None, typer.Argument(help="A .toml file, or a study's name (mixerzoo list).")] = None,
    mixers: Annotated[str | None, typer.Option(help="Names with commas between, or all; a+b tiles a pattern.")] = None,
    tasks: Annotated[str | None, typer.Option("--tasks", "--task", help="Names, commas between: lm,mqar.")] = None,
    seeds: Annotated[str | None, typer.Option(help="How many, from 0 on; or the seeds, commas between: 2.")] = None,
    settings: Settings = [],  # noqa: B006 (typer's way to say: none given)
    vary: Axes = [],  # noqa: B006
    tune: Tuned = [],  # noqa: B006
    search: Annotated[str | None, typer.Option(metavar="grid|asha", help="How to tune.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Of asha over a range, for every arm.")] = None,
    choose_on: Annotated[int | None, typer.Option(min=1, help="Seeds that a choice is made on: 1.")] = None,
    match: Match = None,
    solve: Solve = None,
    baseline: Annotated[str | None, typer.Option(help="The mixer that others are compared with.")] = None,
    text: Text = None,
    name: Annotated[str | None, typer.Option(help="Results go to RUNS_DIR/NAME; the question's, or default.")] = None,
    runs_dir: RunsDir = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="The question that RUNS_DIR/NAME holds, its rest.")] = False,
    engine: Engine = "local",
    workers: Workers = None,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads of a run.")] = 1,
    address: Address = "auto",
    gpus: Gpus = 0,
    job: Job = [],  # noqa: B006
    processes: Processes = 1,
    retry_out_of_memory: RetryOutOfMemory = False,
    track: Track = "",
    plots: Annotated[bool, typer.Option(help="Draw the plots.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print every run, its size and cost, and stop.")] = False,
) -> None:
    """Train every mixer on every task with every seed, and compare. Finished runs are skipped."""
    from mixerzoo.ablation.running.engines.local import warm_up

    if engine == "local" and not dry_run:
        warm_up()  # while this process imports as well
    from mixerzoo.ablation.question.grid import Axis
    from mixerzoo.ablation.question.search import Candidates
    from mixerzoo.ablation.question.settings import Setting

    directory = runs_dir / (name or (Path(question).stem if question else "default"))
    with mistakes():
        given: dict[str, Any] = {
            "mixers": split(mixers) if mixers and mixers != "all" else mixers,
            "tasks": None if tasks is None else split(tasks),
            "seeds": None if seeds is None else parse_seeds(seeds),
            "match": match,
            "solve": solve,
            "baseline": baseline,
            "search": search,
            "trials": trials,
            "choose_on": choose_on,
        }
        tables: dict[str, dict[str, Any]] = {
            "set": {str(s): s.value for s in map(Setting.parse, with_text(settings, text))},
            "vary": {str(a): a.values for a in map(Axis.parse, vary)},
            "tune": {c.path: list(c.values) or f"{c.low}..{c.high}" for c in map(Candidates.parse, tune)},
        }
        if resume and question:
            raise ValueError(f"--resume takes the question that {directory} holds; remedy: leave out {question!r}")
        planned = make_plan(_merged(question, _asked_before(directory) if resume else {}, given, tables))
        if dry_run:
            show_costs(planned, workers, threads)
            return
        how = Asked(
            engine, workers, threads, address, gpus, tuple(job), processes, retry_out_of_memory, tuple(split(track))
        )
        place = how.build(planned)
    carry_out(planned, directory, place, plots=plots)


def _merged(
    question: str | None, asked: Mapping[str, Any], given: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns the question: the command line overrides the file, the file overrides the defaults.

    If the command line leaves out mixers of the file, it also leaves out the settings for these mixers alone.
    """
    from mixerzoo import list_mixers
    from mixerzoo.ablation.question.settings import Axis
    from mixerzoo.ablation.question.studies import read_question
    from mixerzoo.tasks.config import flatten

    file = {**DEFAULTS, **(read_question(question) if question else asked)}
    values = {**file, **{key: value for key, value in given.items() if value is not None}}
    values["mixers"] = list_mixers() if values["mixers"] == "all" else values["mixers"]
    gone = set(file["mixers"]) - set(values["mixers"])
    if gone and file["mixers"] != "all":
        axes = (Axis.of(*item).without(gone) for item in flatten(file.get("vary", {})).items())
        values["vary"] = {str(axis): axis.values for axis in axes if axis is not None}
        laid = flatten(file.get("set", {}))
        values["set"] = {path: value for path, value in laid.items() if path.rpartition(":")[0] not in gone}
    return values | {key: {**flatten(values.get(key, {})), **table} for key, table in tables.items() if table}


def _asked_before(directory: Path) -> dict[str, Any]:
    """Returns the question that a directory was made for."""
    from mixerzoo.tasks.files import read_json

    values = read_json(directory / "grid.json")
    if values is None:
        raise ValueError(f"there is no question in {directory} to resume; remedy: the --name of an earlier ablate")
    return values
