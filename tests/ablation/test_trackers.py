"""Laws of trackers say: they get a run's curve, point by point, under the run's name."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mixerzoo.ablation.running.execute import Options, execute
from mixerzoo.ablation.running.store import Store
from mixerzoo.ablation.running.trackers import check_trackers

from .runs import run


def test_tensorboard_has_every_point_in_the_runs_directory(tmp_path):
    store = Store(tmp_path)
    store.start(run())
    record = store.record(run().run_id)
    execute(run(), record, lambda event: None)
    found = EventAccumulator(str(record.directory)).Reload()
    (row,) = store.rows()
    for tag, key in (("train/loss", "loss"), ("valid/accuracy", "metric")):
        expected = [(point["step"], point[key]) for point in row.curve if point[key] is not None]
        seen = [(event.step, event.value) for event in found.Scalars(tag)]
        assert seen == [(step, pytest.approx(value)) for step, value in expected] and seen


@pytest.mark.parametrize(("names", "message"), [(["comet"], "unknown tracker 'comet'; known: "), (["x"], "unknown")])
def test_a_tracker_that_is_unknown_is_an_error(names, message):
    with pytest.raises(ValueError, match=message):
        check_trackers(names)


def test_a_tracker_that_is_not_installed_is_an_error_with_its_remedy(monkeypatch):
    monkeypatch.setattr("mixerzoo.ablation.running.trackers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="the tracker mlflow isn't installed; remedy: pip install mlflow"):
        check_trackers(["mlflow"])
    check_trackers([])


def test_other_trackers_get_the_grids_name_the_runs_name_its_settings_and_its_curve(tmp_path, monkeypatch):
    calls: list[tuple[str, Any]] = []

    class Run:
        def log(self, values: dict, step: int) -> None:
            calls.append(("log", (step, sorted(values))))

        def finish(self) -> None:
            calls.append(("finish", None))

    class Config:
        def update(self, values: dict, **options: Any) -> None:
            calls.append(("config", values))

    def init(**options: Any) -> Run:
        calls.append(("init", options))
        return Run()

    module: Any = ModuleType("wandb")
    module.init, module.config = init, Config()
    monkeypatch.setitem(sys.modules, "wandb", module)
    store = Store(tmp_path / "grid")
    store.start(run())
    execute(run(), store.record(run().run_id), lambda event: None, Options(trackers=("wandb",)))
    kinds = [kind for kind, _ in calls]
    assert kinds == ["init", "config", "log", "log", "log", "log", "finish"]
    assert (calls[0][1]["project"], calls[0][1]["name"]) == ("grid", run().run_id)
    assert (calls[1][1]["train.lr"], calls[1][1]["backbone.mixer.name"]) == (3e-3, "attention")
    assert calls[2][1] == (1, ["train/loss", "train/tokens_per_second"])
    assert calls[3][1] == (2, ["train/loss", "train/tokens_per_second", "valid/accuracy"])
