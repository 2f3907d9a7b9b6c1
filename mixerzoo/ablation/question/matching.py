"""Gives models that differ in their mixers the size that brings them closest to one common target.

Mixers differ in size (RetNet has twice attention's projections), so a comparison at equal width and depth would favour
the larger. Either the number of parameters is made equal, or the forward FLOPs of a training sequence, or the state at
T = 1024. It is solved for the width of the GLU, the model's width, or its depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from mixerzoo.mixers.parts.checks import check_choice
from mixerzoo.registry.registry import unknown
from mixerzoo.tasks import BackboneConfig, RunConfig, Task
from mixerzoo.tasks.config import parse_value

from .cost import CannotBuild, count_parameters, model_cost
from .settings import Setting, configure

# The largest mismatch, by what is solved for. A GLU has any width. Widths and depths are coarse: hgrn1, hgrn2, gla and
# retnet stay within 9 % of each other's parameters and FLOPs and 19 % of each other's state with widths from 64 on, and
# within 10 % of each other's parameters and FLOPs with four layers; a model farther off than a fifth isn't equal.
TOLERANCE = {"glu": 0.01, "width": 0.2, "depth": 0.2}
NAMES = {"glu": "GLU width", "width": "width", "depth": "depth"}
UNITS = {"params": "parameters", "flops": "FLOPs", "state": "bytes of state"}
WIDTHS = 8  # a width that is solved for is a multiple of it
MOST_WIDTHS, MOST_LAYERS = 16384, 256
QUANTITIES = ("params", "flops", "state")
SOLVED = {"params": "glu", "flops": "glu", "state": "width"}


@dataclass(frozen=True)
class Matching:
    """Says what is made equal, and by which size.

    quantity: params | flops | state. solve: glu | width | depth; None: the GLU's width, for the state the model's.

    reference: the mixer whose model, as configured, sets the target; or the target itself.
    """

    quantity: str = "params"
    reference: str | int = "attention"
    solve: str | None = None

    def __post_init__(self) -> None:
        check_choice("matched quantity", self.quantity, QUANTITIES)
        check_choice("solved size", self.solved, ("glu", "width", "depth"))
        if isinstance(self.reference, int) and self.reference < 1:
            raise ValueError(f"the {self.quantity} to match must be at least 1, got {self.reference}")
        if (self.quantity, self.solved) == ("state", "glu"):
            raise ValueError("the state doesn't depend on the GLU; remedy: --solve width or depth")

    @classmethod
    def parse(cls, text: str, solve: str | None = None) -> Matching | None:
        """Reads `params`, `flops:gla` or `state:65536`; None for `none`. Raises ValueError for another quantity."""
        if not isinstance(text, str):
            raise ValueError(f'match must be a text such as "params", "params:100000" or "none", got {text!r}')
        quantity, colon, reference = text.partition(":")
        if text == "none":
            if solve is not None:
                raise ValueError(f"nothing is matched, so there is no {solve} to solve for; remedy: leave out --solve")
            return None
        if quantity not in QUANTITIES:
            raise ValueError(unknown("quantity to match", quantity, [*QUANTITIES, "none"]))
        if colon and not reference:
            raise ValueError(f"--match {text} names no reference; remedy: {quantity}:MIXER or {quantity}:NUMBER")
        target = parse_value(reference) if reference else "attention"
        return cls(quantity, target if isinstance(target, str) else round(target), solve)

    @property
    def solved(self) -> str:
        return self.solve or SOLVED[self.quantity]


class Match(NamedTuple):
    """Holds a run with its size solved, and how near it came.

    A run whose model can't be built stays as it was, without a size.
    """

    run: RunConfig
    size: int | None
    target: int

    @property
    def mismatch(self) -> float:
        return 0.0 if self.size is None else self.size / self.target - 1


def match(run: RunConfig, matching: Matching, settings: Sequence[Setting] = ()) -> Match:
    """Returns the run with the size that comes nearest to the target.

    `settings` reach the reference mixer as they do runs.

    Raises ValueError if it stays farther away than `TOLERANCE`, and if no width or depth can be built.
    """
    target = target_size(run, matching, settings)
    try:
        solve = {"glu": _solve_glu, "width": _solve_width, "depth": _solve_depth}[matching.solved]
        backbone = solve(run, matching.quantity, target)
        found = Match(replace(run, backbone=backbone), measure(run.task, backbone, matching.quantity), target)
        if abs(found.mismatch) > TOLERANCE[matching.solved]:
            raise ValueError(_too_far(run, found, matching))
        return found
    except CannotBuild:
        return Match(run, None, target)


def checked(run: RunConfig) -> Match:
    """Returns the run as it is, if its model can be built. Raises ValueError for a setting that its mixer refuses."""
    try:
        size = count_parameters(run.task, run.backbone)
        return Match(run, size, size)
    except CannotBuild:
        return Match(run, None, 0)


def measure(task: Task, backbone: BackboneConfig, quantity: str) -> int:
    """Returns a model's size in the quantity that is matched."""
    if quantity == "params":
        return count_parameters(task, backbone)
    cost = model_cost(task, backbone)
    return cost.flops if quantity == "flops" else cost.state


def target_size(run: RunConfig, matching: Matching, settings: Sequence[Setting] = ()) -> int:
    """Returns what this run's model should measure: the size of the reference mixer in its place, or the number."""
    if isinstance(matching.reference, int):
        return matching.reference
    reference = configure(matching.reference, run.task, run.seed, settings).backbone.mixer
    return measure(run.task, replace(run.backbone, mixer=reference), matching.quantity)


def _solve_glu(run: RunConfig, quantity: str, target: int) -> BackboneConfig:
    """Solves for the GLU's width: parameters and FLOPs are affine in it, so two counts determine it exactly."""
    what = f"{run.backbone.label} on {run.task.name}"
    if run.backbone.channel_mixer is None:
        raise ValueError(
            f"{what} has no channel mixer, so its width cannot be solved for; remedy: --match none, or --solve width"
        )
    first, second = (measure(run.task, _with_hidden(run.backbone, hidden), quantity) for hidden in (1, 2))
    return _with_hidden(run.backbone, max(1, round(1 + (target - first) / (second - first))))


def _too_far(run: RunConfig, found: Match, matching: Matching) -> str:
    """Says what the nearest size gives and what would help."""
    backbone, glu = found.run.backbone, found.run.backbone.channel_mixer
    sizes = {"glu": glu and glu.hidden, "width": backbone.dim, "depth": backbone.depth}
    gives, remedy = f"{found.size:,}", "another target, or --match none"
    if matching.solved == "glu":
        least = measure(run.task, _with_hidden(backbone, 1), matching.quantity)
        remedy = f"a target of {least:,} or more, --solve width, or --match none"
    else:
        gives += f" ({found.mismatch:+.0%}, at most {TOLERANCE[matching.solved]:.0%})"
    return (
        f"{run.backbone.label} on {run.task.name} cannot be brought to {found.target:,} {UNITS[matching.quantity]}: "
        f"the nearest {NAMES[matching.solved]}, {sizes[matching.solved]}, gives {gives}; remedy: {remedy}"
    )


def _with_hidden(backbone: BackboneConfig, hidden: int) -> BackboneConfig:
    assert backbone.channel_mixer is not None
    return replace(backbone, channel_mixer=replace(backbone.channel_mixer, hidden=hidden))


def _solve_width(run: RunConfig, quantity: str, target: int) -> BackboneConfig:
    widths = range(WIDTHS, MOST_WIDTHS + 1, WIDTHS)
    return _nearest([replace(run.backbone, dim=dim) for dim in widths], run, quantity, target)


def _solve_depth(run: RunConfig, quantity: str, target: int) -> BackboneConfig:
    depths = range(1, MOST_LAYERS + 1)
    return _nearest([replace(run.backbone, depth=depth) for depth in depths], run, quantity, target)


def _nearest(candidates: Sequence[BackboneConfig], run: RunConfig, quantity: str, target: int) -> BackboneConfig:
    """Returns the candidate nearest to the target, by bisection.

    The candidates grow; those that can't be built are passed over.

    Both neighbours of the target are among those that are measured.
    """
    sizes: dict[int, int] = {}
    low, high = 0, len(candidates)
    reason: Exception | None = None
    while low < high:
        middle = place = (low + high) // 2
        while place < high and place not in sizes:
            try:
                sizes[place] = measure(run.task, candidates[place], quantity)
            except ValueError as error:
                reason, place = error, place + 1
        if place < high and sizes[place] < target:
            low = place + 1
        else:
            high = middle
    if not sizes:
        raise ValueError(f"{run.backbone.label} on {run.task.name} has no size that can be built: {reason}")
    return candidates[min(sizes, key=lambda place: (abs(sizes[place] - target), place))]
