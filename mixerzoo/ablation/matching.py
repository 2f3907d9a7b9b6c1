"""Parameter matching: every model of a task gets the GLU width that brings its size closest to one common target.

Mixers differ in size (RetNet has twice attention's projections), so a comparison at equal width and depth would favour
the larger. Total parameters are affine in the GLU width, which two counts on the meta device determine exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from mixerzoo.tasks import BackboneConfig, RunConfig, Task

from .grid import mixer_config

TOLERANCE = 0.01
SMALL = 2**20


class Match(NamedTuple):
    """A run with its GLU width solved, and how near it came; as it was, with no count, if its model can't be built."""

    run: RunConfig
    parameters: int | None
    target: int

    @property
    def mismatch(self) -> float:
        return 0.0 if self.parameters is None else self.parameters / self.target - 1


class CannotBuild(RuntimeError):
    """A mixer's constructor broke down. Its runs will fail in the same way, each as a row; the others go on."""


def match_parameters(runs: Sequence[RunConfig], reference: str | int = "attention") -> list[Match]:
    """Solve every run's GLU width for a number of parameters common to its task.

    reference: the mixer whose model, with the configured GLU multiplier, sets the target; or the target itself.
    Raises ValueError where no width comes within 1 % of the target.
    """
    solved: dict[str, Match] = {}  # seeds share a model
    for run in runs:
        model = repr((run.task, run.backbone))
        if model not in solved:
            solved[model] = _match(run, reference)
    matches = [solved[repr((run.task, run.backbone))] for run in runs]
    return [
        match._replace(run=replace(match.run, train=run.train, seed=run.seed))
        for run, match in zip(runs, matches, strict=True)
    ]


def count_parameters(task: Task, backbone: BackboneConfig) -> int:
    """Parameters of a task's model.

    A small model is built to be counted, which takes a millisecond; a large one stays on the meta device, whose first
    use imports for a second or two.
    """
    small = backbone.dim**2 * backbone.depth <= SMALL
    try:
        with torch.device("cpu" if small else "meta"):
            return sum(parameter.numel() for parameter in task.build_model(backbone).parameters())
    except ValueError:
        raise
    except Exception as error:
        raise CannotBuild(f"{type(error).__name__}: {error}") from error


def target_size(run: RunConfig, reference: str | int) -> int:
    """The number of parameters that this run's model should have."""
    if isinstance(reference, int):
        return reference
    return count_parameters(run.task, replace(run.backbone, mixer=mixer_config(reference, run.task)))


def _match(run: RunConfig, reference: str | int) -> Match:
    what = f"{run.backbone.label} on {run.task.name}"
    if run.backbone.channel_mixer is None:
        raise ValueError(f"{what} has no channel mixer, so its size cannot be matched; remedy: --match none")
    target = target_size(run, reference)
    try:
        first, second = (count_parameters(run.task, _with_hidden(run, hidden).backbone) for hidden in (1, 2))
    except CannotBuild:
        return Match(run, None, target)
    hidden = max(1, round(1 + (target - first) / (second - first)))
    matched = _with_hidden(run, hidden)
    parameters = count_parameters(run.task, matched.backbone)
    match = Match(matched, parameters, target)
    if abs(match.mismatch) > TOLERANCE:
        raise ValueError(
            f"{what} cannot be brought to {target:,} parameters: the nearest GLU width, {hidden}, gives "
            f"{parameters:,}; remedy: a target of {first:,} or more, or --match none"
        )
    return match


def _with_hidden(run: RunConfig, hidden: int) -> RunConfig:
    assert run.backbone.channel_mixer is not None
    glu = replace(run.backbone.channel_mixer, hidden=hidden)
    return replace(run, backbone=replace(run.backbone, channel_mixer=glu))
