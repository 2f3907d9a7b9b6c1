"""Commands print, and end on a user's mistake, through these functions."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

OPTIONAL = {
    **dict.fromkeys(("timm", "torchvision", "PIL", "sklearn", "tomli"), "vision"),
    "ray": "ray",
    "submitit": "slurm",
    **dict.fromkeys(("transformers", "tokenizers", "safetensors", "huggingface_hub"), "lm"),
}


def make_console(*, quiet: bool = False) -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False, quiet=quiet)


@contextmanager
def mistakes() -> Iterator[None]:
    """Reports a ValueError within the block as the user's mistake: the request is being resolved, nothing has run yet.

    A missing optional dependency is reported likewise.
    """
    try:
        yield
    except ValueError as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in OPTIONAL:
            raise
        fail(f"this needs {package}; remedy: pip install 'mixerzoo[{OPTIONAL[package]}]'")


def fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    sys.exit(2)


def stopped(kept: str) -> NoReturn:
    """Reports a Ctrl-C: what is saved, and the command that resumes."""
    typer.echo(f"stopped: {kept}; to go on: {shlex.join(['mixerzoo', *sys.argv[1:]])}", err=True)
    raise typer.Exit(130) from None


def counting(what: str) -> Callable[[int, int], None]:
    """Shows `12/345 compiled` on one line of a terminal; elsewhere a line for every tenth."""
    tenths: set[int] = set()

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            typer.echo(f"\r\033[K{done}/{total} {what}" if done < total else "\r\033[K", nl=False, err=True)
        elif (tenth := 10 * done // total) not in tenths:
            tenths.add(tenth)
            typer.echo(f"{done}/{total} {what}", err=True)

    return progress


def split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def number(text: str, what: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"a {what} must be a whole number, got {text!r}") from None
