"""Laws of grids, the store, the engine and reports: nothing finished is lost, nothing failed is hidden or fatal."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from mixerzoo import list_mixers
from mixerzoo.ablation.arms import arms
from mixerzoo.ablation.engine import run_pool
from mixerzoo.ablation.grid import Grid, Setting, expand
from mixerzoo.ablation.matching import count_parameters, match_parameters, target_size
from mixerzoo.ablation.report import print_tables, write_report
from mixerzoo.ablation.store import Store
from mixerzoo.ablation.worker import Finished
from mixerzoo.cli import main
from mixerzoo.registry.catalog import MIXERS
from mixerzoo.tasks import RunConfig
from mixerzoo.tasks.train import Point

TINY = {"name": "mqar", "length": 16, "num_pairs": 2, "vocab_size": 20, "valid_sequences": 8}
QUICK = ("backbone.dim=16", "backbone.depth=1", "train.steps=4", "train.batch_size=2", "train.evaluate_every=2")


def grid(*mixers: str, seeds: tuple[int, ...] = (0,), settings: tuple[str, ...] = QUICK) -> list[RunConfig]:
    return expand(Grid(mixers, (TINY,), seeds, tuple(map(Setting.parse, settings))))


def test_a_grid_is_every_combination_one_seed_after_the_other():
    runs = expand(Grid(("gla", "hgrn2+attention"), ("mqar", "lm"), (0, 1)))
    names = [(run.seed, run.task.name, run.backbone.label) for run in runs]
    assert names == [
        (seed, task, mixer) for seed in (0, 1) for task in ("mqar", "lm") for mixer in ("gla", "hgrn2+attention")
    ]
    assert len({run.run_id for run in runs}) == 8


def test_a_tasks_keywords_go_to_the_mixers_that_are_capable_of_them():
    asked = {
        run.backbone.label: run.backbone.mixer.get("short_conv")
        for run in expand(Grid(tuple(list_mixers()), ("mqar",)))
    }
    assert asked == {"attention": None, "gla": 4, "hgrn1": 4, "hgrn2": 4, "retnet": 4}
    assert all("short_conv" not in run.backbone.mixer for run in expand(Grid(tuple(list_mixers()), ("lm",))))


def test_settings_reach_the_runs_they_name():
    settings = ("train.lr=1", "gla:train.lr=2", "mqar:train.steps=7")
    runs = expand(Grid(("gla", "retnet"), ("mqar", "lm"), (0,), tuple(map(Setting.parse, settings))))
    values = {(run.task.name, run.backbone.label): (run.train.lr, run.train.steps == 7) for run in runs}
    assert values == {
        ("mqar", "gla"): (2, True),
        ("mqar", "retnet"): (1, True),
        ("lm", "gla"): (2, False),
        ("lm", "retnet"): (1, False),
    }


@pytest.mark.parametrize(
    ("mixers", "settings", "message"),
    [
        (("gal",), (), r"unknown mixer 'gal'; did you mean gla\?"),
        ((), (), "a grid needs at least one mixer"),
        (("gla",), ("train.stesp=3",), r"unknown configuration key 'train.stesp'; did you mean train.steps"),
        (
            ("gla",),
            ("retnet:train.steps=3",),
            r"the setting retnet:train.steps fits no run; known prefixes here: gla, mqar",
        ),
    ],
)
def test_mistakes_in_a_grid_are_explained(mixers, settings, message):
    with pytest.raises(ValueError, match=message):
        grid(*mixers, settings=settings)


@pytest.mark.parametrize("task", ["lm", "mqar"])
def test_matched_models_have_equally_many_parameters(task):
    runs = expand(Grid((*list_mixers(), "hgrn2+attention"), (task,), (0, 1)))
    for run, match in zip(runs, match_parameters(runs), strict=True):
        assert abs(match.mismatch) <= 0.01
        model = match.run.task.build_model(match.run.backbone)
        assert match.parameters == sum(parameter.numel() for parameter in model.parameters())
        assert match.run.seed == run.seed
        assert replace(match.run.backbone, channel_mixer=run.backbone.channel_mixer) == run.backbone


def test_the_target_is_a_mixers_model_or_a_number():
    (run,) = grid("retnet")
    (attention,) = grid("attention")
    assert target_size(run, "attention") == count_parameters(attention.task, attention.backbone)
    assert match_parameters([run], 5000)[0].target == 5000
    with pytest.raises(
        ValueError, match=r"retnet on mqar cannot be brought to 100 parameters: the nearest GLU width, 1"
    ):
        match_parameters([run], 100)
    with pytest.raises(ValueError, match=r"has no channel mixer, so its size cannot be matched; remedy: --match none"):
        match_parameters(grid("gla", settings=("backbone.channel_mixer=null",)))


def finished_store(root: Path, values: dict[tuple[str, int], float | None]) -> Store:
    """A store with invented results; None stands for a failure."""
    store = Store(root)
    for (mixer, seed), value in values.items():
        (run,) = grid(mixer, seeds=(seed,))
        store.start(run)
        record = store.record(run.run_id)
        if value is None:
            record.finish({"status": "failed", "error": "RuntimeError: no luck", "seconds": 1.0})
            continue
        for step in (2, 4):
            record.append(Point(step, step * 32, step * 0.1, 1.0, value))
        record.finish(
            {
                "status": "done",
                "metric": {"name": "accuracy", "unit": "fraction", "higher_is_better": True},
                "value": value,
                "parameters": 1000,
                "state_bytes": 256,
                "tokens": 128,
                "tokens_per_second": 320.0,
                "seconds": 2.0,
                "steps": 4,
            }
        )
    return store


def test_torn_and_half_written_files_load_as_what_is_whole(tmp_path):
    store = finished_store(tmp_path, {("gla", 0): 0.5, ("gla", 1): 0.6, ("retnet", 0): 0.7})
    first, second, third = sorted(path for path in tmp_path.iterdir())
    with open(first / "curve.jsonl", "a") as file:
        file.write('{"step": 6, "tok')
    (second / "result.json").write_text('{"status": "do')
    (third / "config.json").write_text("{")
    (first / ".result.json.123").write_text("{")
    rows = {row.run_id: row for row in store.rows()}
    assert set(rows) == {first.name, second.name}
    assert [point["step"] for point in rows[first.name].curve] == [2, 4]
    assert (rows[first.name].status, rows[second.name].status) == ("done", "unfinished")
    assert not store.finished(second.name)


def test_a_run_started_again_forgets_its_last_attempt(tmp_path):
    store = finished_store(tmp_path, {("gla", 0): None})
    (run,) = grid("gla")
    assert store.result(run.run_id)["error"] == "RuntimeError: no luck"
    store.start(run)
    (row,) = store.rows()
    assert (row.status, row.curve) == ("unfinished", ())
    assert row.config["data"] == run.task.fingerprint


def test_numbers_that_are_not_finite_are_stored_as_null(tmp_path):
    store = Store(tmp_path)
    (run,) = grid("gla")
    store.start(run)
    store.record(run.run_id).append(Point(1, 1, 1.0, float("nan"), float("inf")))
    (row,) = store.rows()
    assert (row.curve[0]["loss"], row.curve[0]["metric"]) == (None, None)


def test_the_report_has_means_failures_and_every_run(tmp_path):
    store = finished_store(tmp_path, {("gla", 0): 0.5, ("gla", 1): 0.7, ("retnet", 0): 0.9, ("retnet", 1): None})
    best, second = write_report(store)
    assert (best.label, best.values, best.std) == ("retnet", [0.9], None)
    assert (second.mean, second.std) == (pytest.approx(0.6), pytest.approx(0.02**0.5))
    markdown = (tmp_path / "results.md").read_text()
    assert (
        "| gla | 0.6000 ± 0.1414 | 2 | 1,000 | 256 B | 320 | 2 | num_heads=4 short_conv=4 · GLU 2.667x · lr 0.01 |"
        in markdown
    )
    assert "| retnet | 0.9000 | 1 of 2 |" in markdown
    assert "retnet seed 1: failed (RuntimeError: no luck)" in markdown
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert sorted(row["status"] for row in rows) == ["done", "done", "done", "failed"]
    assert {row["backbone.mixer.name"] for row in rows} == {"gla", "retnet"}
    assert next(csv.DictReader((tmp_path / "summary.csv").open()))["mean"] == "0.9"
    for name in ("curves-mqar.png", "quality-vs-state.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert name in markdown
    screen = StringIO()
    print_tables([best, second], Console(file=screen, width=160))
    assert "0.6000 ± 0.1414" in screen.getvalue()
    assert "failed (RuntimeError: no luck)" in screen.getvalue()


def test_runs_with_different_settings_are_never_averaged(tmp_path):
    store = finished_store(tmp_path, {("gla", 0): 0.5})
    (other,) = grid("gla", seeds=(1,), settings=(*QUICK, "train.lr=1.0"))
    store.start(other)
    labels = {arm.label for arm in arms(store.rows())}
    assert labels == {"gla, train.lr=0.01", "gla, train.lr=1"}


def test_an_empty_directory_is_explained(tmp_path):
    with pytest.raises(ValueError, match="there are no runs in"):
        write_report(Store(tmp_path))


PLUGIN = """
import os, signal
from mixerzoo.mixers.attention import Attention

class Plain(Attention):
    pass

class Raising(Attention):
    def forward(self, x, **keywords):
        raise RuntimeError("this mixer\\nis broken")

class Unbuildable(Attention):
    def __init__(self, dim=64):
        raise RuntimeError("no parts left")

class Killed(Attention):
    def forward(self, x, **keywords):
        os.kill(os.getpid(), signal.SIGKILL)

class Exploding(Attention):
    def forward(self, x, **keywords):
        return super().forward(x, **keywords) * float("inf")
"""


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """An installed distribution with five mixers of a third party."""
    site = tmp_path / "site"
    (site / "zooplugin-1.0.dist-info").mkdir(parents=True)
    (site / "zooplugin.py").write_text(PLUGIN)
    (site / "zooplugin-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: zooplugin\nVersion: 1.0\n")
    names = {
        name: f"{name} = zooplugin:{name.capitalize()}"
        for name in ("plain", "raising", "unbuildable", "killed", "exploding")
    }
    entry_points = "\n".join(["[mixerzoo.mixers]", *names.values()])
    (site / "zooplugin-1.0.dist-info" / "entry_points.txt").write_text(entry_points)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(MIXERS, "_targets", dict(MIXERS._targets))
    yield list(names)
    sys.modules.pop("zooplugin", None)


def test_a_grid_outlives_runs_that_raise_explode_or_kill_their_worker(plugins, tmp_path):
    runs = [match.run for match in match_parameters(grid("killed", "raising", "unbuildable", "exploding", "plain"))]
    store = Store(tmp_path / "runs")
    events = []
    run_pool(runs, store, events.append, workers=2)
    results = {run.backbone.label: store.result(run.run_id) for run in runs}
    assert {name: result["status"] for name, result in results.items()} == {
        "killed": "failed",
        "raising": "failed",
        "unbuildable": "failed",
        "exploding": "diverged",
        "plain": "done",
    }
    assert results["killed"]["error"].startswith("the worker process died (killed by SIGKILL)")
    assert results["raising"]["error"] == "RuntimeError: this mixer is broken"
    assert results["unbuildable"]["error"] == "RuntimeError: no parts left"
    raising = next(run.run_id for run in runs if run.backbone.label == "raising")
    assert "Traceback" in (store.root / raising / "log.txt").read_text()
    assert sorted(event.run_id for event in events if isinstance(event, Finished)) == sorted(r.run_id for r in runs)

    plain = results["plain"]
    assert plain["tokens"] == 4 * 2 * 16
    assert plain["state_bytes"] == 4 * 2 * 1024 * 16
    assert {"python", "torch", "mixerzoo", "platform", "cpu", "git", "argv"} <= set(plain["provenance"])
    assert [run.backbone.label for run in runs if not store.finished(run.run_id)] == [
        "killed",
        "raising",
        "unbuildable",
    ]
    problems = {arm.mixer: arm.rows[0].status for arm in write_report(store, plots=False)}
    assert problems["exploding"] == "diverged"


def test_a_failed_run_is_told_and_makes_exit_code_1(plugins, tmp_path, monkeypatch, capsys):
    settings = [f"--set={text}" for text in (*QUICK[:-1], "train.evaluate_every=4")]
    arguments = ["train", "mqar", "--mixer", "raising", "--runs-dir", str(tmp_path), *settings]
    monkeypatch.setattr(sys, "argv", ["mixerzoo", *arguments])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 1
    assert "mqar raising seed 0: failed (RuntimeError: this mixer is broken)" in capsys.readouterr().out


def test_an_exception_in_the_observer_ends_the_workers_and_keeps_what_is_finished(tmp_path):
    runs = grid("attention", seeds=(0, 1, 2))
    store = Store(tmp_path)

    def stop_after_one(event) -> None:
        if isinstance(event, Finished):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_pool(runs, store, stop_after_one, workers=1)
    assert [store.finished(run.run_id) for run in runs] == [True, False, False]
    assert json.loads((tmp_path / runs[0].run_id / "config.json").read_text())["seed"] == 0
