"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Settings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="[PREFIX:]PATH=VALUE",
        help="Change a setting of every run, or of one mixer or task: train.lr=1e-2, mqar:train.steps=900. Repeatable.",
    ),
]
RunsDir = Annotated[Path, typer.Option(help="Where results go.")]
Text = Annotated[Path | None, typer.Option(help="A text of your own for the lm task.")]
Match = Annotated[
    str, typer.Option(help="Match parameters to this mixer's model, or a number.", metavar="MIXER|NUMBER|none")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; as many as cores by default.")]
Script = Annotated[list[str], typer.Argument(metavar="[SCRIPT] [ARGUMENTS]...")]
PASS_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}
