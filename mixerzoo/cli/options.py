"""Several commands share these options."""

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
    str | None,
    typer.Option(
        metavar="params|flops|state[:MIXER|:NUMBER]|none",
        help="What is made equal, to attention's model, another mixer's, or a number.",
    ),
]
Solve = Annotated[str | None, typer.Option(metavar="glu|width|depth", help="What gets the size that matches.")]
Engine = Annotated[str, typer.Option(metavar="local|ray|slurm", help="Who carries the runs out.")]
Address = Annotated[str, typer.Option(help="ray: of the cluster.")]
Gpus = Annotated[float, typer.Option(min=0, help="ray: of one run, 0.5 for two runs on a GPU.")]
Job = Annotated[
    list[str],
    typer.Option(metavar="NAME=VALUE", help="slurm: submitit's parameters, timeout_min=60 for one. Repeatable."),
]
Processes = Annotated[int, typer.Option(min=1, help="Of one run, joined by Accelerate, one a GPU.")]
RetryOutOfMemory = Annotated[
    bool, typer.Option("--retry-out-of-memory", help="Retry with smaller micro-batches; the row says so.")
]
Track = Annotated[str, typer.Option(metavar="wandb,trackio,mlflow", help="Besides TensorBoard.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; as many as cores by default.")]
Script = Annotated[list[str], typer.Argument(metavar="[SCRIPT] [ARGUMENTS]...")]
PASS_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}
