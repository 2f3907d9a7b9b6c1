"""Defines an equal search for every arm: as many trials of the same candidates, chosen on validation data.

    grid    every candidate is trained to the end
    asha    Optuna's asynchronous successive halving (arXiv:1810.05934) gives up on trials that fall behind

Only settings of the training can be searched for, so the model, and with it the match, stays the same. The choice is
made on the grid's first seeds, on the split "valid". The other seeds run with the choice alone, and their test split is
reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from typing import Any

from mixerzoo.mixers.parts.checks import check_choice
from mixerzoo.tasks import RunConfig, TrainConfig
from mixerzoo.tasks.config import assign, canonical, from_dict, parse_values, readable

TUNABLE = "train."


@dataclass(frozen=True)
class Candidates:
    """Lists what is tried for one path: `train.lr=1e-3,3e-3,1e-2`, or a range `train.lr=1e-4..1e-1`, log-uniform."""

    path: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0

    def __post_init__(self) -> None:
        if not self.path.startswith(TUNABLE):
            raise ValueError(
                f"only settings of the training can be tuned, train.lr for one, got {readable(self.path)!r}; "
                "remedy: --vary, whose values are compared and not chosen from"
            )
        if not self.values and not 0 < self.low < self.high:
            raise ValueError(f"{self.path} needs values, or a range with 0 < low < high, got {self.low}..{self.high}")

    @classmethod
    def parse(cls, text: str) -> Candidates:
        path, _, values = text.partition("=")
        if not values.strip():
            raise ValueError(f"a search must read path=value,value or path=low..high, got {text!r}")
        return cls.of(path.strip(), values.strip() if ".." in values else parse_values(values))

    @classmethod
    def of(cls, path: str, values: Any) -> Candidates:
        """Builds candidates from a list of values, or from a range as text."""
        path = canonical(path)
        if isinstance(values, (list, tuple)):
            return cls(path, tuple(value for index, value in enumerate(values) if value not in values[:index]))
        try:
            low, high = map(float, values.split(".."))
        except (AttributeError, ValueError) as error:
            raise ValueError(f"{path} needs a list of values or a range such as 1e-4..1e-1, got {values!r}") from error
        return cls(path, (), low, high)


@dataclass(frozen=True)
class Search:
    """Says what is searched for, and how.

    tune: paths and what is tried for them. trials: for every arm; None: every combination once.

    choose_on: how many of the grid's seeds the choice is made on.
    """

    tune: tuple[Candidates, ...]
    method: str = "grid"
    trials: int | None = None
    choose_on: int = 1

    def __post_init__(self) -> None:
        check_choice("search", self.method, ("grid", "asha"))
        if self.method == "asha" and find_spec("optuna") is None:
            raise ValueError("a search by asha needs Optuna; remedy: pip install 'mixerzoo[search]'")
        ranges = [candidates.path for candidates in self.tune if not candidates.values]
        if ranges and self.method == "grid":
            raise ValueError(f"a grid search needs lists of values, got a range for {ranges[0]}; remedy: --search asha")
        if ranges and self.trials is None:
            raise ValueError(f"a search over the range of {ranges[0]} needs a number of trials; remedy: --trials 8")
        if self.trials is not None and not ranges:
            raise ValueError("listed values are tried once each; remedy: no --trials, or a range such as 1e-4..1e-1")
        if self.choose_on < 1:
            raise ValueError(f"a choice needs at least one seed, got choose_on={self.choose_on}")
        if self.method == "asha" and self.choose_on > 1:
            raise ValueError(
                f"asha draws and gives up trials on every seed by itself, so it chooses on one, got {self.choose_on}; "
                "remedy: --choose-on 1, or --search grid"
            )

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(candidates.path for candidates in self.tune)

    @property
    def combinations(self) -> list[dict[str, Any]]:
        """Returns the combinations of listed values; none if there is a range."""
        return [dict(zip(self.paths, values, strict=True)) for values in product(*(c.values for c in self.tune))]

    @property
    def trials_per_arm(self) -> int:
        """Returns the number of trials on each of the seeds that the choice is made on."""
        return self.trials or len(self.combinations)

    def check(self, run: RunConfig) -> None:
        """Raises ValueError for values that a run cannot have."""
        for values in self.combinations or [{c.path: c.values[0] if c.values else c.low for c in self.tune}]:
            try:
                with_values(run, values)
            except ValueError as error:
                if self.combinations:
                    raise
                raise ValueError(f"{error}; remedy: a list of values, for ranges are of real numbers") from error


def with_values(run: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Returns a run with settings of its training replaced."""
    parts: Any = {"train": run.to_dict()["train"]}
    for path, value in values.items():
        parts = assign(parts, path, value)
    return replace(run, train=from_dict(TrainConfig, parts["train"], "train"))


def trial_runs(runs: Sequence[RunConfig], search: Search) -> list[RunConfig]:
    """Returns every candidate of every arm on the seeds that the choice is made on.

    Those of a range are only found while it runs.
    """
    seeds = list(dict.fromkeys(run.seed for run in runs))[: search.choose_on]
    return [with_values(run, values) for values in search.combinations for run in runs if run.seed in seeds]
