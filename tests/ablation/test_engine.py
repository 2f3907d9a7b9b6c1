"""Laws of the local engine say: nothing that a run does stops the others, and several runners share a directory."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import pytest
import torch

from mixerzoo.ablation.question.grid import Grid
from mixerzoo.ablation.question.plan import plan
from mixerzoo.ablation.running.engines import local
from mixerzoo.ablation.running.engines.local import LocalEngine
from mixerzoo.ablation.running.events import Finished, Progress, Started
from mixerzoo.ablation.running.execute import Options
from mixerzoo.ablation.running.store import Store
from mixerzoo.cli import main
from mixerzoo.cli.runs import Asked, carry_out
from mixerzoo.tasks.cores import usable_cores
from tests.tolerances import assert_close

from .runs import everything_is_there_once, outcomes, run


def test_a_grid_outlives_runs_that_raise_explode_want_memory_or_kill_their_worker(plugins, tmp_path):
    names = ("killed", "raising", "unbuildable", "exploding", "greedy", "hungry", "plain")
    runs = [run(name, batch_size=4) for name in names]
    store, events = Store(tmp_path / "runs"), []
    LocalEngine(2, options=Options(argv=("mixerzoo", "ablate"))).run(iter(runs), store, events.append)
    results = {run.backbone.label: store.result(run.run_id) for run in runs}
    assert {name: result["status"] for name, result in results.items()} == {
        "killed": "failed",
        "raising": "failed",
        "unbuildable": "failed",
        "exploding": "diverged",
        "greedy": "out of memory",
        "hungry": "out of memory",
        "plain": "done",
    }
    assert results["killed"]["error"] == (
        "the worker process died (killed by SIGKILL: by someone, or by the kernel because memory ran out); "
        "log.txt has what it said"
    )
    assert results["raising"]["error"] == "RuntimeError: this mixer is broken"
    assert results["unbuildable"]["error"] == "RuntimeError: no parts left"
    assert results["hungry"]["error"].startswith("RuntimeError: ")
    raising = next(run.run_id for run in runs if run.backbone.label == "raising")
    assert "Traceback" in (store.root / raising / "log.txt").read_text()
    ends = sorted(event.run_id for event in events if isinstance(event, Finished))
    assert ends == sorted(run.run_id for run in runs)
    unfinished = [run.backbone.label for run in runs if not store.finished(run.run_id)]
    assert unfinished == ["killed", "raising", "unbuildable", "greedy", "hungry"]

    plain = results["plain"]
    assert (plain["split"], plain["tokens"], plain["state_bytes"]) == ("test", 4 * 4 * 16, 4 * 2 * 1024 * 16)
    assert 0 <= plain["value"] <= 1 and 0 <= plain["valid"] <= 1
    assert plain["flops_per_token"] > 2 * 3 * 16 * 16
    assert plain["peak_memory_bytes"] > 2**20 and plain["notes"] == []
    assert {"energy_joules", "seconds", "measurements", "parameters", "loss"} <= set(plain)
    for result in (plain, results["raising"], results["killed"]):
        origin = result["provenance"]
        assert {"python", "torch", "mixerzoo", "platform", "host", "cpu", "device", "git"} <= set(origin)
        assert origin["argv"] == ["mixerzoo", "ablate"]


def test_a_run_that_wants_too_much_memory_goes_on_in_smaller_parts_if_asked_to(plugins, tmp_path):
    store, hungry, greedy = Store(tmp_path / "runs"), run("hungry", batch_size=7), run("greedy")
    engine = LocalEngine(1, options=Options(retry_out_of_memory=True))
    engine.run(iter([hungry, greedy]), store, lambda event: None)
    result = store.result(hungry.run_id)
    assert (result["status"], result["notes"]) == ("done", ["out of memory at batch 7; ran as 4 x 2"])
    assert result["tokens"] == 4 * 7 * 16
    assert store.rows()[1].config["train"]["accumulate"] == 1
    result = store.result(greedy.run_id)
    assert (result["status"], result["error"]) == ("out of memory", "MemoryError: ")


def test_a_run_ends_where_a_search_gave_it_up(plugins, tmp_path):
    """A run is taken from the iterator only when there is a place for it."""
    store, slow, next_one = Store(tmp_path / "runs"), run("slow", steps=400, evaluate_every=2), run("plain")
    seen: list = []

    def runs():
        yield slow
        seen.append("asked for more")
        yield next_one

    def observe(event) -> None:
        seen.append(event)
        if isinstance(event, Progress) and event.run_id == slow.run_id and event.step == 4:
            store.stop(event.run_id)

    LocalEngine(1).run(runs(), store, observe)
    result = store.result(slow.run_id)
    assert result["status"] == "stopped" and 4 <= result["steps"] < 400
    assert (result["value"], result["valid"] is not None) == (None, True)
    assert seen.index("asked for more") > next(i for i, event in enumerate(seen) if isinstance(event, Finished))
    assert store.finished(slow.run_id) and store.result(next_one.run_id)["status"] == "done"


def test_an_exception_in_the_observer_ends_the_workers_and_keeps_what_is_finished(tmp_path):
    runs = [run(seed=seed) for seed in range(3)]
    store = Store(tmp_path)

    def stop_after_one(event) -> None:
        if isinstance(event, Finished):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalEngine(1).run(iter(runs), store, stop_after_one)
    assert [store.finished(run.run_id) for run in runs] == [True, False, False]
    assert json.loads((tmp_path / runs[0].run_id / "config.json").read_text())["seed"] == 0


def test_two_runners_on_one_directory_share_the_work_and_each_sees_all_of_it(plugins, tmp_path):
    runs = [run("slow", seed=seed, steps=20) for seed in range(4)]
    store, told = Store(tmp_path / "runs"), [[], []]
    runners = [
        threading.Thread(target=LocalEngine(1).run, args=(iter(order), store, events.append))
        for order, events in zip((runs, runs), told, strict=True)
    ]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    everything_is_there_once(store, runs)
    for events in told:
        assert {event.run_id for event in events if isinstance(event, Finished)} == {run.run_id for run in runs}
    started = [event.run_id for events in told for event in events if isinstance(event, Started)]
    assert sorted(started) == sorted(run.run_id for run in runs)


def test_a_run_that_another_runner_lets_go_is_taken_over(tmp_path):
    """Another runner's claim is left alone while there is other work, and waited for at the end."""
    first, second = run(seed=0), run(seed=1)
    store, events = Store(tmp_path), []
    claim = store.claim(first.run_id)
    assert claim.__enter__()

    def observe(event) -> None:
        events.append(event)
        if event == Finished(second.run_id, store.result(second.run_id)):
            claim.__exit__(None, None, None)

    LocalEngine(1).run(iter([first, second]), store, observe)
    assert [event.run_id for event in events if isinstance(event, Started)] == [second.run_id, first.run_id]
    everything_is_there_once(store, [first, second])


def test_places_share_the_cores_and_the_gpus(monkeypatch):
    monkeypatch.setattr(local, "visible_gpus", list)
    monkeypatch.setattr(local, "usable_cores", lambda: 8)

    def threads(*arguments: int) -> list[int]:
        return [int(place["OMP_NUM_THREADS"]) for place in LocalEngine(*arguments).places()]

    assert threads() == [1] * 8
    assert threads(None, 4) == [4, 4]
    assert threads(3, 4) == [2, 2, 2]
    assert threads(16, 4) == [1] * 16
    monkeypatch.setattr(local, "visible_gpus", lambda: ["2", "5"])
    assert [place["CUDA_VISIBLE_DEVICES"] for place in LocalEngine().places()] == ["2", "5"]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in LocalEngine(3).places()] == ["2", "5", "2"]
    monkeypatch.setattr(local, "visible_gpus", lambda: ["0", "1", "2", "3", "4"])
    double = LocalEngine(options=Options(processes=2))
    assert [place["CUDA_VISIBLE_DEVICES"] for place in double.places()] == ["0,1", "2,3"]
    with pytest.raises(ValueError, match="a run on 6 processes needs as many GPUs, here are 5"):
        LocalEngine(options=Options(processes=6)).places()


def test_a_worker_has_its_share_of_the_cores_whatever_the_environment_says(plugins, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    monkeypatch.setenv("SAID", "lately")
    store, telling = Store(tmp_path / "runs"), run("telling", steps=1)
    LocalEngine(1, threads=2).run(iter([telling]), store, lambda event: None)
    threads = str(min(2, usable_cores()))
    assert (store.root / telling.run_id / "log.txt").read_text().split()[:2] == [threads, threads]
    assert (store.root / telling.run_id / "log.txt").read_text().split()[3] == "lately"
    assert os.environ["OMP_NUM_THREADS"] == "77"


def test_a_result_does_not_hang_on_how_many_work(tmp_path):
    runs = [run(seed=seed) for seed in range(3)]
    for workers in (1, 2):
        LocalEngine(workers).run(iter(runs), Store(tmp_path / str(workers)), lambda event: None)
    assert outcomes(Store(tmp_path / "1")) == outcomes(Store(tmp_path / "2"))


def test_a_failed_run_is_told_and_makes_exit_code_1(plugins, tmp_path, monkeypatch, capsys):
    settings = [f"--set={text}" for text in ("backbone.dim=16", "backbone.depth=1", "train.steps=1")]
    arguments = ["train", "mqar", "--mixer", "raising", "--runs-dir", str(tmp_path / "runs"), *settings]
    monkeypatch.setattr(sys, "argv", ["mixerzoo", *arguments])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 1
    assert "failed (RuntimeError: this mixer is broken)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gpus": 1.0}, "--gpus is for --engine ray, got --engine local; remedy: leave it out"),
        ({"engine": "ray", "job": ("mem_gb=3",)}, "--job is for --engine slurm, got --engine ray"),
        ({"engine": "slurm", "address": "here:6379"}, "--address is for --engine ray, got --engine slurm"),
    ],
)
def test_an_option_of_another_engine_is_not_ignored(given, message):
    with pytest.raises(ValueError, match=message):
        Asked(**given).build(plan(Grid.of(mixers=["attention"], tasks=["mqar"])))


def test_a_new_question_about_finished_runs_is_reported_anew(tmp_path):
    directory, settings = tmp_path / "runs", {"train.steps": 1, "backbone.dim": 16, "backbone.depth": 1}
    task = {"name": "mqar", "length": 16, "num_pairs": 2, "vocab_size": 20, "valid_sequences": 8}
    asked = {"mixers": ["attention", "gla"], "tasks": [task], "seeds": 1, "set": settings, "match": "none"}
    for baseline, plots in ((None, False), ("attention", False), ("attention", True)):
        carry_out(plan(Grid.of(**asked, baseline=baseline)), directory, LocalEngine(1), plots=plots)
        assert ("vs attention" in (directory / "results.md").read_text()) == (baseline is not None)
        assert (directory / "figures").exists() == plots


@pytest.mark.slow
def test_a_run_on_two_processes_is_the_run_on_one(plugins, tmp_path, monkeypatch):
    root, before = str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, str(tmp_path / "site"), before]))
    runs, stores = [run(batch_size=4), run("raising")], {n: Store(tmp_path / f"on {n}") for n in (1, 2)}
    events: list = []
    for processes, store in stores.items():
        LocalEngine(1, options=Options(processes=processes)).run(iter(runs), store, events.append)
    one, two = ({row.config["backbone"]["mixer"]["name"]: row for row in store.rows()} for store in stores.values())
    losses = [torch.tensor([point["loss"] for point in rows["attention"].curve]) for rows in (one, two)]
    assert_close(*losses)
    assert two["attention"].result["tokens"] == one["attention"].result["tokens"]
    assert [point["metric"] for point in two["attention"].curve] == [p["metric"] for p in one["attention"].curve]
    error = two["raising"].result["error"]
    assert error.startswith("RuntimeError: one of its 2 processes failed, the last words are: ")
    assert "RuntimeError: this mixer" in error and error.endswith("is broken")
    steps = [event.step for event in events if isinstance(event, Progress)]
    assert steps == [1, 2, 3, 4, 1, 2, 3, 4]
