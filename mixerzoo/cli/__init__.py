"""The command line reads arguments, calls the package and prints. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .ablate import ablate
from .data import app as data_app
from .options import PASS_ON, Match, RunsDir, Script, Settings, Solve, Text, Workers
from .screen import counting, fail, make_console, mistakes, split

app = typer.Typer(
    help="Compare sequence mixers honestly: the same task, data, training and number of parameters.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

check = typer.Typer(help="Prove things about the package itself.", rich_markup_mode=None)
app.add_typer(check, name="check")

evaluate = typer.Typer(help="Evaluate what was trained.", rich_markup_mode=None)
app.add_typer(evaluate, name="eval")

app.add_typer(data_app, name="data")


@app.command("list")
def list_command(
    family: Annotated[str | None, typer.Option(help="Only mixers of this family, 'matrix state' for one.")] = None,
    op: Annotated[str | None, typer.Option(help="Only mixers that run on this op, hgrn2 for one.")] = None,
    can: Annotated[list[str], typer.Option(help="Only mixers that promise this, causal for one. Repeatable.")] = [],  # noqa: B006 (typer's way to say: none given)
) -> None:
    """List every mixer, task and study; with filters, the mixers for which all of them hold."""
    from mixerzoo import list_mixers, mixer_info
    from mixerzoo.ablation.question.studies import list_studies
    from mixerzoo.tasks.base import TASKS

    with mistakes():
        names = list_mixers(family, op, can)
    rows = [(name, spec.family, spec.paper, spec.equation) for name in names for spec in [mixer_info(name)]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    for *cells, equation in rows:
        typer.echo("  ".join([*(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)), equation]))
    if family or op or can:
        return
    tasks = (f"{name} ({', '.join(others)})" if others else name for name, *others in TASKS.synonyms())
    typer.echo(f"tasks: {', '.join(tasks)}")
    typer.echo(f"studies: {', '.join(list_studies())}")


@app.command()
def show(mixer: str) -> None:
    """Print what is known about a mixer: family, equation, formulas of state and cost, promises and limits."""
    from dataclasses import fields

    import torch

    from mixerzoo import build_mixer, mixer_info

    with mistakes():
        spec = mixer_info(mixer)
    with torch.device("meta"):
        built = build_mixer(mixer)
    facts = {field.name: _in_words(getattr(spec, field.name)) for field in fields(spec)}
    defaults = _in_words({"D": built.dim, **built.letters()})
    facts["letters"] = f"T tokens, params weights of linear maps and windows; with the defaults {defaults}"
    for name, text in facts.items():
        typer.echo(f"{name:<17}  {text or 'none'}")


def _in_words(value: Any) -> str:
    """Returns `a, b` for several, `x=1, y=2` for a mapping, and other values as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={one}" for name, one in value.items())
    return ", ".join(sorted(value)) if isinstance(value, (tuple, frozenset)) else str(value)


app.command("ablate")(ablate)


@app.command()
def train(
    task: Annotated[str, typer.Argument(help="A task, with --mixer; lm or vision, without.", show_default=False)],
    folder: Annotated[str | None, typer.Argument(metavar="[DIR]", help="The same as --data-dir.")] = None,
    mixer: Annotated[str | None, typer.Option(help="What to train on a task; a+b tiles a pattern.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|JSON|DIR",
            help="vision: a timm model, zoo_hgrn2_tiny_patch16_224. "
            "lm: keywords of MixerConfig as JSON, or a checkpoint.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="vision: digits, cifar10, fashion_mnist, imagefolder:DIR, hfds:NAME. "
            "lm: embedded, text:FILES, jsonl:FILES, parquet:FILES, hfds:NAME@SPLIT, tokens:FILE.",
        ),
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="vision: where the images stand, or go.")] = None,
    download: Annotated[bool, typer.Option("--download", help="vision: fetch cifar10 or fashion_mnist.")] = False,
    recipe: Annotated[str | None, typer.Option(help="vision, lm, lra/*: a recipe's name, or a .toml file.")] = None,
    lra_dir: Annotated[Path | None, typer.Option(help="lra/*: the folder of Long Range Arena's archive.")] = None,
    out: Annotated[Path | None, typer.Option(help="vision, lm: the run's own folder; a run in it is resumed.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides weights and batches.", show_default="0")] = None,
    text: Text = None,
    settings: Settings = [],  # noqa: B006 (typer's way to say: none given)
    match: Match = "none",
    solve: Solve = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Train one mixer on one task, one timm model on images, or one language model on text, on all cores.

    With --mixer, lm is the grids' small task: minutes, next bytes. Without it, lm trains a transformers model from
    --recipe or --model on any text: on one process or, with torchrun or accelerate launch, on many.
    """
    shared = {"model": model, "data": data, "recipe": recipe, "settings": settings, "seed": seed}
    if task == "vision":
        from .vision import train_model

        if mixer is not None:
            fail("vision trains a model, not a mixer; remedy: --model zoo_MIXER_tiny_patch16_224 in place of --mixer")
        train_model({**shared, "data_dir": data_dir or folder, "download": download}, out, runs_dir)
        return
    if task == "lm" and mixer is None:
        from .lm import train_model as train_language_model

        if folder or data_dir or download:
            fail("--data-dir and --download are vision's; remedy: --data text:FILES, hfds:NAME, tokens:FILE, ...")
        train_language_model({**shared, "data": f"text:{text}" if data is None and text else data}, out, runs_dir)
        return
    import torch

    from mixerzoo.ablation.question.settings import Setting
    from mixerzoo.tasks import build_task

    from .runs import Asked, carry_out, make_plan, with_text

    if mixer is None:
        with mistakes():
            build_task(task)
        fail(f"training on {task} needs a mixer; remedy: --mixer, for example hgrn2 (mixerzoo list names them)")
    if model or data or out:
        fail("--mixer trains it on a task of the grids; remedy: leave out --model, --data and --out")
    recipe_settings: list[Any] = []
    with mistakes():
        if lra_dir is not None:
            recipe_settings.append(("task.lra_dir", str(lra_dir)))
        if recipe is not None:
            from mixerzoo.tasks.lra.recipe import lra_recipe

            found = lra_recipe(task, recipe, mixer)
            recipe_settings, seed = [*found.settings, *recipe_settings], found.seed if seed is None else seed
            typer.echo(f"published: {', '.join(f'{key} {value}' for key, value in found.published.items())}")
        laid = [*recipe_settings, *((str(s), s.value) for s in map(Setting.parse, with_text(settings, text)))]
        question: dict[str, Any] = {"mixers": [mixer], "tasks": [task], "seeds": [seed or 0], "set": dict(laid)}
        question |= {"match": match, "solve": solve}
        planned = make_plan(question)
        engine = Asked(workers=1, threads=torch.get_num_threads()).build(planned)  # OMP_NUM_THREADS, or all cores
    carry_out(planned, runs_dir / "train", engine, plots=True)


@app.command("timm-train", context_settings=PASS_ON)
def timm_train(arguments: Script = []) -> None:  # noqa: B006 (typer's way to say: none given)
    """Run timm's train.py with the zoo's models registered. It is ./train.py, unless its path is the first argument."""
    from .vision import run_timm_script

    run_timm_script("train.py", arguments)


@app.command("timm-validate", context_settings=PASS_ON)
def timm_validate(arguments: Script = []) -> None:  # noqa: B006 (typer's way to say: none given)
    """Run timm's validate.py with the zoo's models registered. It is ./validate.py, unless its path comes first."""
    from .vision import run_timm_script

    run_timm_script("validate.py", arguments)


@app.command()
def report(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Of several, the folder is a column.")],
    where: Annotated[
        list[str], typer.Option(metavar="PATH=VALUES", help="Only these runs: mixer=gla,hgrn2, seed<2. Repeatable.")
    ] = [],  # noqa: B006 (typer's way to say: none given)
    by: Annotated[str, typer.Option(metavar="PATHS", help="Group by these alone, commas between.")] = "",
    baseline: Annotated[str | None, typer.Option(help="A mixer, or an arm by its label.")] = None,
    plots: Annotated[bool, typer.Option(help="Draw the plots.")] = True,
) -> None:
    """Print the results of one or more directories, and write their tables, page and figures again."""
    from mixerzoo.ablation.reading.report import print_tables, write_report
    from mixerzoo.ablation.running.store import Store

    from .runs import written

    with mistakes():
        made = write_report(*map(Store, run_dirs), where=where, by=split(by), baseline=baseline, plots=plots)
    print_tables(made, make_console())
    typer.echo(written(made.directory, plots))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A checkpoint's folder, flash-linear-attention's or the zoo's.")],
    target: Annotated[Path, typer.Argument(help="The folder for the other's format; it must not exist.")],
    shard_size: Annotated[str, typer.Option(help="The largest file of weights.")] = "5GB",
) -> None:
    """Turn a language model's checkpoint in flash-linear-attention's format into the zoo's, or back."""
    from .lm import convert_checkpoint

    convert_checkpoint(source, target, shard_size)


@evaluate.command("lm")
def evaluate_lm(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint: a folder, or a name on the hub.")],
    data: Annotated[str | None, typer.Option(metavar="SOURCE", help="The text: see train; @test of hfds.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="bytes, a folder or a name; by default the model's.")] = None,
    settings: Annotated[
        list[str], typer.Option("--set", metavar="data.NAME=VALUE", help="data.text_key=content, ... Repeatable.")
    ] = [],  # noqa: B006 (typer's way to say: none given)
    context: Annotated[int | None, typer.Option(min=1, help="Of the sliding windows; the training length.")] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Of the sliding windows; half the context.")] = None,
    lengths: Annotated[str, typer.Option(help="Of pieces, commas between; 1/4 to 8 training lengths.")] = "",
    max_tokens: Annotated[int | None, typer.Option(min=2, help="Of the text; all by default.")] = None,
    tasks: Annotated[str, typer.Option(help="Tasks of lm-evaluation-harness, commas between.")] = "",
    include_path: Annotated[Path | None, typer.Option(help="A folder with tasks of your own.")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Examples before a question.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 8,
    out: Annotated[Path | None, typer.Option(help="Where results go; MODEL/evaluation, or ./evaluation.")] = None,
) -> None:
    """Report a text's perplexity and bits per byte, by context and length, with a plot; lm-evaluation-harness tasks."""
    from .lm import evaluate_model

    text = {"context": context, "stride": stride, "lengths": lengths, "max_tokens": max_tokens}
    harness = {"include_path": include_path, "shots": shots, "limit": limit, "batch_size": batch_size}
    evaluate_model(model, data, tokenizer, settings, text, split(tasks), harness, out)


@check.command()
def kernels(
    target: Annotated[list[str], typer.Option(help="sm_80, sm_90 or gfx942. Repeatable; all by default.")] = [],  # noqa: B006
    op: Annotated[str | None, typer.Option(help="Only this op's kernels.")] = None,
    workers: Workers = None,
) -> None:
    """Compile every kernel for GPUs that needn't be here, and count the bytes that ops move.

    Fails if a kernel doesn't fit.
    """
    from mixerzoo.kernels.check.compile import TARGETS
    from mixerzoo.kernels.check.table import bytes_table, compile_all, compiled_table, count_all
    from mixerzoo.tasks.cores import usable_cores

    workers, console = workers or usable_cores(), make_console()
    with mistakes():
        compiled = compile_all(target or TARGETS, op, workers, counting("compiled"))
    console.print(compiled_table(compiled))
    counted = count_all(op, workers, counting("ops run"))
    console.print("", bytes_table(counted))
    if bad := [row for row in compiled if not row.good]:
        for row in bad:
            if isinstance(row.result, str):
                typer.echo(f"{row.kernel}, {row.op} {row.configuration}, {row.target}: {row.result}", err=True)
        console.print(f"\n{len(bad)} of {len(compiled)} spill, exceed the shared memory, or don't compile")
        raise typer.Exit(1)
    console.print(f"\nall {len(compiled)} fit: nothing spilled, shared memory within every chip's limit")


def main() -> None:
    """Runs the command line. A user's mistake prints one line on stderr and exits with 2; Ctrl-C exits with 130."""
    usage_error: Any = typer.BadParameter.__base__  # click's UsageError, wherever this version of typer keeps it
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False))
    except usage_error as error:
        fail(error.format_message())
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("stopped", err=True)
        sys.exit(130)
