"""Turns a grid into its runs, matched and priced, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from mixerzoo.ablation.formats import counted
from mixerzoo.tasks import RunConfig
from mixerzoo.tasks.config import readable

from .grid import Grid, expand
from .matching import Match, checked, match
from .paths import value_at
from .search import trial_runs

COARSE = 0.05  # a mismatch above this is warned of


class LeftOut(NamedTuple):
    """Names a cell of the grid that cannot be: a mixer that cannot be matched, or a value that it refuses.

    values: what the axes set, such as `mixer.expand=128`. reason: why, in the words of the error.
    """

    task: str
    mixer: str
    values: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        varied = f" with {', '.join(self.values)}" if self.values else ""
        return f"{self.mixer} on {self.task}{varied} is left out: {self.reason}"


class Plan(NamedTuple):
    """Holds every run of a grid with its size matched.

    `matches` is empty where nothing was asked to be equal.

    left_out: cells that cannot be, and so have no run.
    """

    grid: Grid
    runs: tuple[RunConfig, ...]
    matches: tuple[Match, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def paths(self) -> list[str]:
        """Returns the paths that are varied or searched for; of settings that go together, the first."""
        tuned = self.grid.search.paths if self.grid.search else ()
        return list(dict.fromkeys([*(axis.paths[0] for axis in self.grid.vary), *tuned]))

    @property
    def trials(self) -> list[RunConfig]:
        """Returns what runs first: the candidates of a search, or everything."""
        return trial_runs(self.runs, self.grid.search) if self.grid.search else list(self.runs)

    @property
    def priced(self) -> list[RunConfig]:
        """Returns a run for everything that has a cost of its own.

        These are the trials, or the arms whose trials are yet to be drawn.
        """
        return self.trials or [run for run in self.runs if run.seed == self.runs[0].seed]

    @property
    def arms(self) -> int:
        """Returns the number of runs of one seed."""
        return len(self.runs) // len(dict.fromkeys(run.seed for run in self.runs))

    @property
    def later(self) -> int:
        """Returns the number of runs that wait for a choice: one an arm, of every seed on which nothing is chosen."""
        if self.grid.search is None:
            return 0
        return self.arms * max(0, len(self.runs) // self.arms - self.grid.search.choose_on)


def plan(grid: Grid) -> Plan:
    """Expands a grid and matches the sizes of its models; cells that cannot be are left out with their reason.

    Raises whatever `expand` raises, and ValueError with the reasons if no cell is left.
    """
    runs = expand(grid)
    seeds = dict.fromkeys(run.seed for run in runs)
    cells = runs[: len(runs) // len(seeds)]
    if grid.search is not None:
        for cell in cells:
            grid.search.check(cell)
    matches, left_out = [], []
    for cell in cells:
        try:
            matches.append(match(cell, grid.matching, grid.settings) if grid.matching else checked(cell))
        except ValueError as error:
            left_out.append(LeftOut(cell.task.name, cell.backbone.label, _varied(cell, grid), str(error)))
    if not matches:
        raise ValueError("; and ".join(dict.fromkeys(cell.reason for cell in left_out)))
    every = [found._replace(run=replace(found.run, seed=seed)) for seed in seeds for found in matches]
    left = _merged(left_out, matches)
    return Plan(grid, tuple(found.run for found in every), tuple(every) if grid.matching else (), left)


def _merged(left_out: Sequence[LeftOut], matches: Sequence[Match]) -> tuple[LeftOut, ...]:
    """Merges a mixer's cells into one, without values and with the first's reason, where none of them has a run."""
    there = {(found.run.task.name, found.run.backbone.label) for found in matches}
    merged: dict[tuple[Any, ...], LeftOut] = {}
    for cell in left_out:
        shown = cell if (cell.task, cell.mixer) in there else cell._replace(values=())
        merged.setdefault(shown[:-1], shown)
    return tuple(merged.values())


def _varied(cell: RunConfig, grid: Grid) -> tuple[str, ...]:
    values = {readable(axis.paths[0]): value_at(cell.to_dict(), axis.paths[0], "") for axis in grid.vary}
    return tuple(f"{path}={value}" for path, value in values.items() if value != "")


def describe_matching(planned: Plan) -> list[str]:
    """Returns a sentence for every target: what was made equal, and the model that is farthest from it."""
    matching = planned.grid.matching
    if matching is None:
        return []
    unit = {"params": "parameters", "flops": "forward FLOPs a sequence", "state": "bytes of state"}[matching.quantity]
    groups: dict[tuple[str, int], list[Match]] = {}
    for found in planned.matches:
        if found.size is not None:
            groups.setdefault((found.run.task.name, found.target), []).append(found)
    lines = []
    for (task, target), group in groups.items():
        worst = max(group, key=lambda found: abs(found.mismatch))
        warning = "; coarse, as widths and depths are" if abs(worst.mismatch) > COARSE else ""
        lines.append(
            f"{task}: {unit} matched to {target:,} by the {matching.solved}; "
            f"farthest is {worst.run.backbone.label} with {worst.size:,} ({worst.mismatch:+.2%}){warning}"
        )
    return lines


def describe(planned: Plan) -> str:
    """Says how many runs there are."""
    search = planned.grid.search
    if search is None:
        return counted(len(planned.runs), "run")
    per_arm = search.trials_per_arm * search.choose_on
    trials = f"{counted(per_arm * planned.arms, 'trial')}, {per_arm} an arm"
    return f"{trials}, then {counted(planned.later, 'run')} with what they choose" if planned.later else trials
