"""`mixerzoo data` makes files of tokens, and generates Long Range Arena's data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .options import Workers
from .screen import counting, fail, mistakes, stopped

app = typer.Typer(help="Make files of data.", rich_markup_mode=None)


@app.command()
def tokens(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="text:FILES, jsonl:FILES, hfds:NAME@SPLIT, ...")],
    target: Annotated[Path, typer.Argument(help="NAME: NAME.bin and NAME.json are written.")],
    tokenizer: Annotated[str, typer.Option(help="bytes, or a folder or name of a Hugging Face tokenizer.")] = "bytes",
    settings: Annotated[
        list[str], typer.Option("--set", metavar="data.NAME=VALUE", help="data.text_key=content, ... Repeatable.")
    ] = [],  # noqa: B006 (typer's way to say: none given)
) -> None:
    """Tokenize text of any size into a memory-mapped file for `mixerzoo train lm --data tokens:NAME`."""
    from .lm import make_tokens

    make_tokens(source, target, tokenizer, settings)


@app.command()
def listops(
    out: Annotated[Path, typer.Option(metavar="DIR", help="DIR/listops-1000/basic_{train,val,test}.tsv are written.")],
    samples: Annotated[int, typer.Option(min=50, help="Of the three files together: 96, 2 and 2 %.")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="Decides every sample.")] = 0,
    workers: Workers = None,
) -> None:
    """Make Long Range Arena's ListOps, in the released archive's layout."""
    from mixerzoo.tasks.lra.listops_generator import write_listops

    with mistakes(), writing(out):
        files = write_listops(out, samples, seed, workers=workers, progress=counting("samples"))
    typer.echo(f"written: {', '.join(map(str, files))}")


@app.command()
def pathfinder(
    out: Annotated[Path, typer.Option(metavar="DIR", help="DIR/pathfinderR/curv_.../{imgs,metadata} are written.")],
    resolution: Annotated[int, typer.Option(help="32, 64 or 128 (Path-X) pixels; 16 is not Long Range Arena's.")] = 32,
    samples: Annotated[int, typer.Option(min=1, help="Images.")] = 200_000,
    seed: Annotated[int, typer.Option(min=0, help="Decides every image.")] = 0,
    contour_length: Annotated[int, typer.Option(help="Dashes of a contour: 6, 9 or 14 in the archive.")] = 14,
    workers: Workers = None,
) -> None:
    """Make Long Range Arena's Pathfinder or Path-X, in the released archive's layout."""
    from mixerzoo.tasks.lra.pathfinder.image_files import write_pathfinder

    with mistakes(), writing(out):
        folder = write_pathfinder(
            out, resolution, samples, seed, contour_length=contour_length, workers=workers, progress=counting("images")
        )
    typer.echo(f"written: {folder}")


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Reports an OSError within the block as a folder that can't be written, or a full disk.

    Unfinished files are removed.
    """
    try:
        yield
    except KeyboardInterrupt:
        stopped("nothing is kept")
    except OSError as error:
        fail(f"cannot write to {out}: {error.strerror}; remedy: another --out")
