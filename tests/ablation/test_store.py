"""Laws of the store say: whole rows load, torn ones don't, and one process at a time writes a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mixerzoo.ablation.running.store import Row, Store
from mixerzoo.tasks import RunConfig
from mixerzoo.tasks.train import Point

from .runs import run

DONE = {
    "status": "done",
    "metric": {"name": "accuracy", "unit": "fraction", "higher_is_better": True},
    "value": 0.5,
}
HOLD = """
import sys, time
from mixerzoo.ablation.running.store import Store
with Store(sys.argv[1]).claim("run") as ours:
    print(ours, flush=True)
    time.sleep(60)
"""


def write(store: Store, config: RunConfig, result: dict) -> Path:
    store.start(config)
    record = store.record(config.run_id)
    for step in (2, 4):
        record.append(Point(step, step * 32, step * 0.1, 1.0, 0.5))
    record.finish(result)
    return record.directory


def test_torn_and_half_written_files_load_as_what_is_whole(tmp_path):
    store = Store(tmp_path)
    first, second, third = (write(store, run(seed=seed), DONE) for seed in range(3))
    with open(first / "curve.jsonl", "a") as file:
        file.write('{"step": 6, "tok')
    (second / "result.json").write_text('{"status": "do')
    (second / "curve.jsonl").write_text('{"step": 2}\n{"step": 4, "to\n{"step": 6}\n7\n')
    (third / "config.json").write_text("{")
    (first / ".result.json.123").write_text("{")
    (tmp_path / "results.md").touch()
    rows = {row.run_id: row for row in store.rows()}
    assert set(rows) == {first.name, second.name}
    assert [[point["step"] for point in rows[path.name].curve] for path in (first, second)] == [[2, 4], [2, 6]]
    assert (rows[first.name].status, rows[second.name].status) == ("done", "unfinished")
    assert not store.finished(second.name)


def test_a_run_taken_up_again_keeps_of_its_last_attempt_the_checkpoint_alone(tmp_path):
    store = Store(tmp_path)
    directory = write(store, run(), {"status": "failed", "error": "RuntimeError: no luck"})
    for name in ("checkpoint.pt", ".checkpoint.pt.1", ".result.json.2", "events.out.tfevents.3", "log.txt", "mine.txt"):
        (directory / name).touch()
    assert store.result(run().run_id)["error"] == "RuntimeError: no luck"
    store.start(run())
    assert {path.name for path in directory.iterdir()} == {"config.json", "checkpoint.pt", "mine.txt"}
    (row,) = store.rows()
    assert (row.status, row.curve, row.config["data"]) == ("unfinished", (), run().task.fingerprint)


@pytest.mark.parametrize(
    ("status", "finished"),
    [("done", True), ("diverged", True), ("stopped", True), ("failed", False), ("out of memory", False)],
)
def test_a_checkpoint_stays_until_there_is_a_result(tmp_path, status, finished):
    store = Store(tmp_path)
    store.start(run())
    checkpoint = tmp_path / run().run_id / "checkpoint.pt"
    checkpoint.touch()
    store.record(run().run_id).finish({"status": status})
    assert (store.finished(run().run_id), checkpoint.exists()) == (finished, not finished)


def test_numbers_that_are_not_finite_are_stored_as_null(tmp_path):
    store = Store(tmp_path)
    store.start(run())
    store.record(run().run_id).append(Point(1, 1, 1.0, float("nan"), float("inf")))
    (row,) = store.rows()
    assert (row.curve[0]["loss"], row.curve[0]["metric"]) == (None, None)


def test_a_claim_is_one_processs_and_ends_with_it_even_by_kill_9(tmp_path):
    store = Store(tmp_path)
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "True\n"
    with store.claim("run") as ours:
        assert not ours
    other.kill()
    with store.claim("run", patient=True) as ours:
        assert ours
    with store.claim("run") as ours, store.claim("run") as twice:
        assert (ours, twice) == (True, False)
    other.wait()
    other.stdout.close()


def test_a_row_is_given_up_once_and_not_over_a_result(tmp_path):
    store, failed = Store(tmp_path), {"status": "failed", "error": "died"}
    assert store.give_up(run(), failed)
    (row,) = store.rows()
    assert (row.status, row.config["seed"]) == ("failed", 0)
    write(store, run(), DONE)
    assert store.give_up(run(), failed) and store.finished(run().run_id)
    with store.claim(run().run_id):
        assert not store.give_up(run(), failed)


def test_rows_of_before_this_version_load(tmp_path):
    directory = tmp_path / "old"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"task": {"name": "mqar"}, "seed": 0}))
    (directory / "result.json").write_text(json.dumps({"status": "done", "value": 1.0}))
    assert Store(tmp_path).rows() == [
        Row("old", {"task": {"name": "mqar"}, "seed": 0}, (), {"status": "done", "value": 1.0})
    ]
    assert Store(tmp_path / "missing").rows() == []
