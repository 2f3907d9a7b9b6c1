"""The benchmark runs, and its results say what they were measured on."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mixerzoo import list_mixers, mixer_info

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "cpu.py"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("benchmarks") / "results" / "cpu.json"
    command = [sys.executable, str(SCRIPT), "--smoke", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| hgrn2 |" in done.stdout
    return json.loads(out.read_text())


def test_results_say_where_they_come_from(smoke):
    assert smoke["smoke"] is True and smoke["threads"] >= 1 and smoke["date"]
    assert {"cpu", "cores", "python", "torch", "git"} <= set(smoke["provenance"])


def test_every_op_is_timed_and_a_missing_peer_is_absent(smoke):
    rows = {row["op"]: row["seconds"] for row in smoke["speed"]}
    peers = {"naive_recurrent_gla", "naive_recurrent_hgrn"}
    assert set(rows) == {"hgrn2", "gated_linear_attention", "gated_scan", "scaled_dot_product_attention"} | peers
    installed = importlib.util.find_spec("fla") is not None
    assert all((seconds is not None) == (installed or op not in peers) for op, seconds in rows.items())


def test_every_mixer_with_a_constant_state_is_stepped(smoke):
    constant = [name for name in list_mixers() if "constant_state" in mixer_info(name).capabilities]
    assert [row["mixer"] for row in smoke["steps"]] == constant


def test_a_smoke_run_claims_nothing(smoke):
    assert smoke["claims"] == []


@pytest.mark.parametrize("path", sorted(SCRIPT.parent.glob("results/*.json")), ids=lambda path: path.name)
def test_committed_results_are_real_runs_with_a_commit(path):
    record = json.loads(path.read_text())
    assert not record["smoke"]
    assert record["provenance"]["git"] and record["claims"]


@pytest.mark.slow
def test_the_digits_benchmark_trains_and_says_what_it_measured(tmp_path):
    command = [sys.executable, str(SCRIPT.with_name("digits.py")), "--smoke", "--out", str(tmp_path / "digits.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "digits.json").read_text())
    assert [row["mixer"] for row in record["rows"]] == list_mixers()[:2]
    assert all(row["epochs"] == 1 and row["seconds"] > row["train_seconds"] > 0 for row in record["rows"])
    assert (record["smoke"], record["claims"]) == (True, [])
    assert f"| {list_mixers()[0]} |" in done.stdout
