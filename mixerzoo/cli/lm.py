"""The command line trains and evaluates language models, converts checkpoints and writes token files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .screen import fail, make_console, mistakes, number, split, stopped

if TYPE_CHECKING:
    from mixerzoo.tasks.lm.training import Progress, Trainer

READING = ("data.text_key", "data.subset", "data.end_documents")


def train_model(options: dict[str, Any], out: Path | None, runs_dir: Path) -> None:
    """Resolves a run, trains or resumes it, and prints its validation. `options` are those of `recipe.resolve`."""
    with mistakes():
        from mixerzoo.tasks.lm.recipe import resolve

        run = resolve(**options)
        from mixerzoo.tasks.lm.training import Trainer

        trainer = Trainer(run, out or runs_dir / "lm" / run.run_id, sys.argv)
    console = make_console(quiet=not trainer.accelerator.is_main_process)
    console.print(
        f"{run.label} with {trainer.parameters:,} parameters on {run.data.name} in {trainer.out}, "
        f"{trainer.step} of {run.train.steps} updates made before",
        soft_wrap=True,
    )
    try:
        _show(trainer, console)
    except KeyboardInterrupt:
        stopped(f"the latest checkpoint in {trainer.out} is kept")
    result = trainer.result or {}
    if result.get("status") != "done":
        console.print(f"diverged after {result.get('steps')} updates: the loss is no longer a number")
        raise typer.Exit(1)
    console.print(
        f"{_scores(result)} on the validation text, {result['tokens']:,} tokens in {result['seconds']:.0f} s",
        soft_wrap=True,
    )
    if published := {name: value for name, value in run.published.items() if name.endswith("perplexity")}:
        console.print(f"published: {', '.join(f'{name} {value}' for name, value in published.items())}", soft_wrap=True)
    console.print(f"written: {trainer.out}/result.json, history.jsonl, model", soft_wrap=True)


def evaluate_model(
    name: str,
    source: str | None,
    tokenizer: str | None,
    settings: list[str],
    text: dict[str, Any],
    tasks: list[str],
    harness: dict[str, Any],
    out: Path | None,
) -> None:
    """Evaluates a checkpoint on a text, on tasks, or both; prints the results and writes them to `out`."""
    with mistakes():
        if source is None and not tasks:
            fail("nothing to evaluate; remedy: --data for a text, for example text:FILE, or --tasks")
        lengths = [number(part, "length") for part in split(text["lengths"])]
        from mixerzoo.tasks.lm.build import load_model
        from mixerzoo.tasks.lm.data.text_data import load_tokens
        from mixerzoo.tasks.lm.data.token_files import load_tokenizer
        from mixerzoo.tasks.lm.evaluation import evaluate_text, plot_lengths, score_tasks

        model = load_model(name).to(_device()).eval()
    folder = out or (Path(name) if Path(name).is_dir() else Path()) / "evaluation"
    about = {"model": name, "parameters": model.num_parameters()}
    console = make_console()
    if source is not None:
        with mistakes():
            wanted = tokenizer if source.startswith("tokens:") else tokenizer or name
            tokens, known = load_tokens(_data_config(settings, wanted), source)
            results = {**about, "data": source, **evaluate_text(model, tokens, known, **{**text, "lengths": lengths})}
        window = results["sliding"]
        windows = f"windows of {window['context']} tokens, {window['stride']} apart"
        console.print(f"{windows}: {_scores(window)}", soft_wrap=True)
        for entry in results["lengths"]:
            console.print(f"pieces of {entry['length']} tokens: {_scores(entry)}", soft_wrap=True)
        _write(results, folder / "results.json")
        plot_lengths(results, Path(name).name, folder / "lengths.png")
        console.print(f"written: {folder}/results.json, lengths.png", soft_wrap=True)
    if tasks:
        with mistakes():
            results = {**about, **score_tasks(model, load_tokenizer(tokenizer or name), tasks, **harness)}
        for task, scores in results["results"].items():
            numbers = {key.removesuffix(",none"): value for key, value in scores.items() if isinstance(value, float)}
            line = ", ".join(f"{key} {value:.4f}" for key, value in numbers.items())
            console.print(f"{task}: {line}", soft_wrap=True)
        _write(results, folder / "tasks.json")
        console.print(f"written: {folder}/tasks.json", soft_wrap=True)


def _write(results: dict[str, Any], path: Path) -> None:
    from mixerzoo.tasks.files import to_json, write_atomically
    from mixerzoo.tasks.provenance import provenance

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, to_json({**results, "provenance": provenance(sys.argv)}))
    except OSError as error:
        fail(f"cannot write to {path.parent}: {error.strerror}")


def convert_checkpoint(source: Path, target: Path, shard_size: str) -> None:
    with mistakes():
        from mixerzoo.tasks.lm.convert import convert

        convert(source, target, shard_size=shard_size)
    typer.echo(f"written: {target}")


def make_tokens(source: str, target: Path, tokenizer: str, settings: list[str]) -> None:
    """Tokenizes a source into NAME.bin and NAME.json."""
    with mistakes():
        from mixerzoo.tasks.lm.data.sources import documents
        from mixerzoo.tasks.lm.data.token_files import load_tokenizer, write_tokens

        config = _data_config(settings, tokenizer)
        made = write_tokens(
            target,
            documents(config, source),
            load_tokenizer(tokenizer),
            name=tokenizer,
            end_documents=config.end_documents,
            progress=lambda tokens: typer.echo(f"{tokens:,} tokens", err=True),
        )
    typer.echo(f"written: {made.ids.filename}, {len(made):,} tokens")  # type: ignore[attr-defined]


def _data_config(settings: list[str], tokenizer: str | None) -> Any:
    """Returns the [data] table of `--set data.NAME=VALUE`, limited to settings of how a text is read."""
    from mixerzoo.registry.registry import unknown
    from mixerzoo.tasks.config import from_dict, parse_setting
    from mixerzoo.tasks.lm.recipe import DataConfig
    from mixerzoo.tasks.recipes import lay

    laid = [parse_setting(text) for text in settings]
    for path, _ in laid:
        if path not in READING:
            raise ValueError(unknown("setting of how a text is read", path, READING))
    return from_dict(DataConfig, lay({"data": {"tokenizer": tokenizer}}, laid)["data"], "data")


def _device() -> Any:
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _show(trainer: Trainer, console: Any) -> None:
    """Shows a bar over all updates on a terminal; everywhere a line for each evaluation."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("· left"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=trainer.config.train.steps, completed=trainer.step)
        for progress in trainer.run():
            bar.update(task, completed=progress.step, description=_line(progress))
            if progress.valid is not None:
                console.print(_line(progress), soft_wrap=True)


def _line(progress: Progress) -> str:
    line = (
        f"update {progress.step:>{len(str(progress.steps))}}/{progress.steps}: loss {progress.loss:.3f}, "
        f"lr {progress.lr:.2e}, {progress.tokens_per_second:,.0f} tokens/s"
    )
    return line if progress.valid is None else f"{line}, validation: {_scores(progress.valid)}"


def _scores(scores: dict[str, Any]) -> str:
    bits = f", {scores['bits_per_byte']:.4f} bits per byte" if "bits_per_byte" in scores else ""
    return f"perplexity {scores['perplexity']:.3f}{bits}"
