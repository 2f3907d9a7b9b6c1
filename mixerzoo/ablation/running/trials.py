"""Runs the trials of a search: Optuna's suggestions, runs that are given up, and runs with what was chosen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mixerzoo.ablation.question.search import Candidates, Search, with_values
from mixerzoo.tasks import RunConfig
from mixerzoo.tasks.config import flatten

from .choice import arm_of, choose
from .events import Finished, Progress
from .store import Row, Store, configuration

if TYPE_CHECKING:
    import optuna

FIRST_RUNG, REDUCTION = 1, 3  # of successive halving: evaluations before the first cut, and what share of trials stays


def chosen_runs(runs: Sequence[RunConfig], search: Search, rows: Sequence[Row]) -> list[RunConfig]:
    """Returns every run of the grid with what was chosen for its arm; arms without a choice are left out."""
    choices = {
        arm_of(candidate.rows[0].config, search.paths): choice.best
        for choice in choose(rows, search.paths)
        for candidate in choice.candidates[:1]
    }
    best = ((run, choices.get(arm_of(configuration(run), search.paths))) for run in runs)
    return [with_values(run, candidate.values) for run, candidate in best if candidate is not None]


class HalvingSearch:
    """Makes trials of every arm in turn, as Optuna suggests them, and stops those that fall behind.

    Trials that the store already holds are reported first, so an interrupted search resumes where it was.
    """

    def __init__(self, runs: Sequence[RunConfig], search: Search, store: Store) -> None:
        self.search, self.store = search, store
        self._running: dict[str, tuple[optuna.Study, optuna.Trial]] = {}
        seeds = list(dict.fromkeys(run.seed for run in runs))[: search.choose_on]
        rows = [] if search.combinations else store.rows()
        arms = [(run, search.combinations or known_trials(run, search, rows)) for run in runs if run.seed in seeds]
        self._arms = [(run, _study(run, len(known)), known) for run, known in arms]

    def runs(self) -> Iterator[RunConfig]:
        """Yields the next trial, whenever there is room for one."""
        for number in range(self.search.trials_per_arm):
            for run, study, known in self._arms:
                if number < len(known):
                    study.enqueue_trial(known[number])
                trial = study.ask()
                candidate = with_values(run, {c.path: _suggest(trial, c) for c in self.search.tune})
                if self.store.finished(candidate.run_id):
                    _tell(study, trial, self.store.result(candidate.run_id))
                else:
                    self._running[candidate.run_id] = study, trial
                    yield candidate

    def hear(self, event: Any) -> None:
        """Hears of an evaluation or an end.

        A run that has fallen behind the others of its arm is stopped; an end is reported to Optuna.
        """
        if event.run_id not in self._running:
            return
        if isinstance(event, Finished):
            _tell(*self._running.pop(event.run_id), event.result)
        elif isinstance(event, Progress) and event.metric is not None and math.isfinite(event.metric):
            _, trial = self._running[event.run_id]
            trial.report(event.metric, event.step)
            if trial.should_prune():
                self.store.stop(event.run_id)


def known_trials(run: RunConfig, search: Search, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns the trials of an arm that a store holds, whatever state they are in."""
    arm = arm_of(configuration(run), search.paths)
    own = (row for row in rows if row.config["seed"] == run.seed and arm_of(row.config, search.paths) == arm)
    return [{path: flatten(row.config)[path] for path in search.paths} for row in own]


def _study(run: RunConfig, known: int) -> optuna.Study:
    """Makes a study whose random numbers depend on the number of known trials, so that resuming draws other ones."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rung = FIRST_RUNG * run.train.evaluate_every
    return optuna.create_study(
        direction="maximize" if run.task.metric.higher_is_better else "minimize",
        sampler=optuna.samplers.TPESampler(seed=run.seed + known),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=rung, reduction_factor=REDUCTION),
    )


def _suggest(trial: optuna.Trial, candidates: Candidates) -> Any:
    if candidates.values:
        return trial.suggest_categorical(candidates.path, list(candidates.values))
    return trial.suggest_float(candidates.path, candidates.low, candidates.high, log=True)


def _tell(study: optuna.Study, trial: optuna.Trial, result: Mapping[str, Any]) -> None:
    from optuna.trial import TrialState

    if result["status"] == "done":
        study.tell(trial, result.get("valid", result["value"]))
    else:
        study.tell(trial, state=TrialState.PRUNED if result["status"] == "stopped" else TrialState.FAIL)
