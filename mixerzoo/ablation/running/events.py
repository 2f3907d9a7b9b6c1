"""Events tell an observer of a run that it is planned, has begun, is under way, or has come to its end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from mixerzoo.tasks import RunConfig


class Planned(NamedTuple):
    """Says that a run is handed to an engine, as soon as that has a place for it."""

    run_id: str
    run: RunConfig


class Started(NamedTuple):
    """Says that a process has taken the run on."""

    run_id: str


class Progress(NamedTuple):
    """Says that a run is under way. A resumed run reports its earlier points once more."""

    run_id: str
    step: int
    loss: float
    metric: float | None
    tokens_per_second: float
    seconds: float

    @classmethod
    def of(cls, run_id: str, point: Mapping[str, Any]) -> Progress:
        """Builds the event from a point of the curve as it is stored, where what isn't finite is null."""
        loss = math.nan if point["loss"] is None else point["loss"]
        rate = point["tokens"] / point["seconds"]
        return cls(run_id, point["step"], loss, point["metric"], rate, point["seconds"])


class Finished(NamedTuple):
    """Says that a run has come to its end; `result` is what its result.json holds."""

    run_id: str
    result: Mapping[str, Any]


Event: TypeAlias = "Planned | Started | Progress | Finished"
