"""Laws of a search say: equal for every arm, chosen on validation, reported on the test, resumed after a kill."""

from __future__ import annotations

from mixerzoo.ablation.question.grid import Grid, expand
from mixerzoo.ablation.question.search import trial_runs
from mixerzoo.ablation.running.choice import choose
from mixerzoo.ablation.running.events import Finished, Progress
from mixerzoo.ablation.running.store import Row, Store
from mixerzoo.ablation.running.trials import HalvingSearch, chosen_runs

TINY = {"name": "mqar", "length": 16, "num_pairs": 2, "vocab_size": 20, "valid_sequences": 8}
METRIC = {"name": "accuracy", "unit": "", "higher_is_better": True}


def grid(**question):
    return Grid.of(**{"mixers": ["hgrn2", "gla"], "tasks": [TINY], "seeds": 3, "match": "none", **question})


def row(run, valid: float | None, status: str = "done") -> Row:
    """Invents a result with a test value that contradicts its validation value."""
    result = {"status": status, "metric": METRIC, "valid": valid, "value": None if valid is None else 1 - valid}
    return Row(run.run_id, {**run.to_dict(), "data": run.task.fingerprint}, (), result)


def test_every_arm_is_searched_alike_on_the_first_seed():
    asked = grid(tune={"train.lr": [1e-3, 1e-2], "train.weight_decay": [0.0, 0.1]})
    runs = expand(asked)
    found = trial_runs(runs, asked.search)
    tried = {"hgrn2": [], "gla": []}
    for run in found:
        assert run.seed == 0
        tried[run.backbone.label].append((run.train.lr, run.train.weight_decay))
    assert tried["hgrn2"] == tried["gla"] == [(1e-3, 0.0), (1e-3, 0.1), (1e-2, 0.0), (1e-2, 0.1)]


def test_the_choice_is_made_on_validation_and_runs_on_every_seed():
    asked = grid(tune={"train.lr": [1e-3, 3e-3, 1e-2]})
    runs = expand(asked)
    best = {"hgrn2": 3e-3, "gla": 1e-2}
    rows = [
        row(run, 0.9 if run.train.lr == best[run.backbone.label] else 0.5) for run in trial_runs(runs, asked.search)
    ]
    chosen = chosen_runs(runs, asked.search, rows)
    assert [(run.backbone.label, run.train.lr, run.seed) for run in chosen] == [
        (mixer, best[mixer], seed) for seed in (0, 1, 2) for mixer in ("hgrn2", "gla")
    ]
    assert {choice.at_edge for choice in choose(rows, asked.search.paths)} == {(), ("train.lr",)}


def test_candidates_are_compared_on_the_seeds_that_all_have():
    asked = grid(mixers=["gla"], tune={"train.lr": [1e-3, 1e-2]})
    first, second = trial_runs(expand(asked), asked.search)
    lucky = expand(grid(mixers=["gla"], set={"train.lr": 1e-2}, seeds=[1]))[0]
    (choice,) = choose([row(first, 0.6), row(second, 0.5), row(lucky, 1.0)], asked.search.paths)
    assert choice.best.values == {"train.lr": 1e-3}
    assert {c.values["train.lr"]: c.score for c in choice.candidates} == {1e-3: 0.6, 1e-2: 0.5}


def test_what_failed_or_was_given_up_is_never_chosen():
    asked = grid(mixers=["gla"], tune={"train.lr": [1, 2, 3]})
    trials = trial_runs(expand(asked), asked.search)
    rows = [row(trials[0], None, "failed"), row(trials[1], 0.9, "stopped"), row(trials[2], 0.1)]
    (choice,) = choose(rows, asked.search.paths)
    assert choice.best.values == {"train.lr": 3}
    (choice,) = choose([row(trials[0], None), row(trials[2], 0.1)], asked.search.paths)  # its metric is not a number
    assert choice.best.values == {"train.lr": 3}
    (nothing,) = choose(rows[:2], asked.search.paths)
    assert nothing.best is None
    assert chosen_runs(expand(asked), asked.search, rows[:2]) == []


def test_halving_stops_what_falls_behind_and_goes_on_from_the_store(tmp_path):
    asked = grid(mixers=["gla"], tune={"train.lr": "1e-4..1e-1"}, search="asha", trials=6, set={"train.steps": 500})
    runs, store = expand(asked), Store(tmp_path)
    search = HalvingSearch(runs, asked.search, store)
    tried = []
    for number, run in enumerate(search.runs()):
        tried.append(run.train.lr)
        assert 1e-4 <= run.train.lr <= 1e-1 and run.seed == 0
        store.start(run)
        for step in range(50, 501, 50):
            search.hear(Progress(run.run_id, step, 1.0, 0.9 - 0.1 * number, 1.0, 1.0))
        stopped = (tmp_path / run.run_id / "stop").exists()
        assert stopped == (number > 0)
        status = "stopped" if stopped else "done"
        result = {"status": status, "metric": METRIC, "value": 0.9, "valid": 0.9}
        store.record(run.run_id).finish(result)
        search.hear(Finished(run.run_id, result))
        if number == 3:
            break
    again = [run.train.lr for run in HalvingSearch(runs, asked.search, store).runs()]
    assert len(again) == 2 and not set(again) & set(tried)
    assert {run.train.lr for run in chosen_runs(runs, asked.search, store.rows())} == {tried[0]}
