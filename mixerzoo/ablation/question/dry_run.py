"""Shows what a grid will cost before any money is spent: every run's parameters, FLOPs, state and estimated time."""

from __future__ import annotations

from rich.table import Table

from mixerzoo.ablation.formats import counted
from mixerzoo.tasks import RunConfig
from mixerzoo.tasks.config import readable

from .cost import CannotBuild, estimate_seconds, model_cost
from .paths import value_at
from .plan import Plan


def cost_table(planned: Plan) -> tuple[Table, float]:
    """Returns a table with a line a run, and the seconds of all that could be estimated.

    An arm whose trials are drawn from a range is one line.

    Times are measured here: two training steps and one evaluated batch for each that has a speed of its own.
    """
    trials, ranges = _drawn(planned)
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
    total, untried = 0.0, 0
    for run in planned.priced:
        name = f"{run.run_id.rpartition('-')[0]}, {trials} trials" if ranges else run.run_id
        try:
            cost = model_cost(run.task, run.backbone)
        except CannotBuild as error:
            table.add_row(name, f"cannot be built: {error}")
            continue
        speed = _speed(run)
        if speed not in seconds:
            seconds[speed] = estimate_seconds(run)
        own = seconds[speed]
        total += trials * (own or 0.0)
        untried += trials * (own is None)
        table.add_row(
            name,
            *(str(ranges.get(path) or value_at(run.to_dict(), path, "")) for path in varied),
            *([f"{mismatch[repr((run.task, run.backbone))]:+.2%}"] if mismatch else []),
            f"{cost.parameters:,}",
            f"{cost.flops / cost.tokens:,.0f}",
            f"{cost.training_flops(run):.2e}",
            f"{cost.state:,} B",
            "not tried: too large" if own is None else duration(own),
        )
    if untried:
        table.caption = f"{counted(untried, 'run')} too large to try: no time is counted for them"
    return table, total


def summary(planned: Plan, seconds: float, workers: int) -> str:
    """Says how many runs there are, and how long they take with so many at a time."""
    trials, ranges = _drawn(planned)
    runs = trials * len(planned.priced)
    places = 1 if any(run.task.alone for run in planned.runs) else min(workers, runs)
    time = f"{'at most ' * bool(ranges)}about {duration(seconds / places)} with {places} at a time on this machine"
    text = f"{counted(runs, 'trial' if ranges else 'run')}, {time}"
    if planned.later:
        text += f"; then {counted(planned.later, 'further seed')} with what the search chose, about as long each"
    return text


def duration(seconds: float) -> str:
    """Returns `45 s`, `12 min` or `3.2 h`."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


def _drawn(planned: Plan) -> tuple[int, dict[str, str]]:
    """Returns how many trials of an arm are drawn, and from which ranges; 1 and none where every run is known."""
    search = planned.grid.search
    if search is None or search.combinations:
        return 1, {}
    return search.trials_per_arm, {c.path: f"{c.low:g}..{c.high:g}" for c in search.tune if not c.values}


def _speed(run: RunConfig) -> str:
    """Returns a key that is equal for runs that take as long: seeds, learning rates and the like make no difference."""
    train = run.train
    return repr((run.task, run.backbone, train.steps, train.batch_size, train.accumulate, train.evaluate_every))
