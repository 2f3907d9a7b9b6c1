"""What a grid will cost, before any money is spent: every run with parameters, FLOPs, state and an estimated time."""

from __future__ import annotations

from rich.table import Table

from mixerzoo.tasks import RunConfig
from mixerzoo.tasks.config import flatten, readable

from .cost import CannotBuild, estimate_seconds, model_cost
from .plan import Plan


def cost_table(planned: Plan) -> tuple[Table, float]:
    """A line a run, and the seconds of all that could be estimated.

    Times are measured here: two training steps and one evaluated batch for each arm.
    """
    table = Table(title="every run", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("run", no_wrap=True)
    varied = planned.paths
    for path in varied:
        table.add_column(readable(path), justify="right", no_wrap=True)
    mismatch = {repr((match.run.task, match.run.backbone)): match.mismatch for match in planned.matches}
    for header in (
        *["mismatch"] * bool(mismatch),
        "parameters",
        "FLOPs/token",
        "training FLOPs",
        "state at T=1024",
        "time here",
    ):
        table.add_column(header, justify="right", no_wrap=True)
    seconds: dict[str, float | None] = {}
    total = 0.0
    for run in planned.trials:
        try:
            cost = model_cost(run.task, run.backbone)
        except CannotBuild as error:
            table.add_row(run.run_id, f"cannot be built: {error}")
            continue
        settings = flatten(run.to_dict())
        arm = _arm(run)
        if arm not in seconds:
            seconds[arm] = estimate_seconds(run)
        own = seconds[arm]
        total += own or 0.0
        table.add_row(
            run.run_id,
            *(str(settings.get(path, "")) for path in varied),
            *([f"{mismatch[repr((run.task, run.backbone))]:+.2%}"] if mismatch else []),
            f"{cost.parameters:,}",
            f"{cost.flops / cost.tokens:,.0f}",
            f"{cost.training_flops(run):.2e}",
            f"{cost.state:,} B",
            "not tried: too large" if own is None else duration(own),
        )
    return table, total


def summary(planned: Plan, seconds: float, workers: int) -> str:
    """How many runs, and how long they take with so many at a time."""
    runs = len(planned.trials)
    search = planned.grid.search
    if search is not None and not search.combinations:
        return f"{search.trials_per_arm} trials for each arm, found while it runs; {planned.later} further runs"
    places = 1 if any(run.task.alone for run in planned.runs) else min(workers, runs)
    text = f"{runs} runs, about {duration(seconds / places)} with {places} at a time on this machine"
    if planned.later:
        text += f"; then {planned.later} further seeds with what the search chose, about as long each"
    return text


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.2 h`."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


def _arm(run: RunConfig) -> str:
    return repr((run.task, run.backbone, run.train))
