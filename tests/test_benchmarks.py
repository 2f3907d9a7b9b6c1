"""The benchmark runs, and its results say what they were measured on."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mixerzoo import list_mixers, mixer_info

from .tolerances import assert_close

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


def test_the_learning_benchmark_keeps_tables_and_figures_of_a_study(tmp_path):
    """Two mixers and four steps of each language: the curves are drawn, and a smoke run claims nothing."""
    command = [sys.executable, str(SCRIPT.with_name("learning.py")), "languages", "--smoke"]
    command += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kept = tmp_path / "out" / "learning" / "languages"
    curves = {f"series-diagnostics_{task}-length-extrapolation.png" for task in ("even-pairs", "parity")}
    assert {"results.md", "results.csv", "summary.csv", *curves} <= {file.name for file in kept.iterdir()}
    with open(kept / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["mixer"] for row in rows} == {"attention", "hgrn2"} and len({row["task"] for row in rows}) == 3
    assert all(0 <= float(row["length 20"]) <= 1 for row in rows if row["task"] == "diagnostics/parity")
    record = json.loads((tmp_path / "out" / "learning.json").read_text())
    assert (record["smoke"], record["claims"], list(record["studies"])) == (True, [], ["languages"])


def test_the_learning_benchmark_checks_its_claims_in_what_is_stored(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    learning = importlib.import_module("learning")
    rows = [
        {"task": "lra/listops", "mixer": "gla", "mean": "0.50", "root operator": "0.44"},
        {"task": "lra/listops", "mixer": "hgrn1", "mean": "0.48", "root operator": "0.44"},
    ]
    above = learning.Claim(0.05, baseline="root operator").check("listops-short", rows)
    assert [(claim["holds"], round(claim["measured"], 6)) for claim in above] == [(True, 0.06), (False, 0.04)]
    assert [claim["bound"] for claim in above] == [">= 0.05", ">= 0.05"]
    (below,) = learning.Claim(0.49, mixers=("hgrn1",), at_most=True).check("listops-short", rows)
    assert below["holds"] and below["bound"] == "<= 0.49" and "hgrn1" in below["claim"]
    assert learning.Claim(0.1, task="lra/text").check("listops-short", rows) == []


def test_the_discs_of_pathfinder_are_found(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    disc_distances = importlib.import_module("disc_distance").disc_distances
    images = np.zeros((2, 16, 16), np.float32)
    images[0, 1:4, 1:4] = images[0, 4:7, 5:8] = 1.0  # centres (2, 2) and (5, 6)
    images[1, 8:11, 0:3] = images[1, 8:11, 10:13] = 0.9
    images[1, 2, :] = 0.5  # a line, which is no disc
    assert disc_distances(images).tolist() == [5, 10]


def test_only_attention_is_served_from_a_cache_that_grows_and_a_mixer_that_fails_is_rows_with_its_error(tmp_path):
    out = tmp_path / "results" / "serving.json"
    command = [sys.executable, str(SCRIPT.with_name("serving.py")), "--smoke", "--mixers", "attention,hgrn1,hgrn3"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert (record["smoke"], record["claims"]) == (True, [])
    rows = {(row["mixer"], row["context"]): row for row in record["rows"]}
    assert set(rows) == {(mixer, context) for mixer in ("attention", "hgrn1", "hgrn3") for context in (32, 64)}
    assert all("hgrn3" in row["error"] for (mixer, _), row in rows.items() if mixer == "hgrn3")
    served = [row for (mixer, _), row in rows.items() if mixer != "hgrn3"]
    assert all(row["error"] is None and row["decode_tokens_per_second"] > 0 for row in served)
    assert rows["attention", 64]["cache_bytes"] == 2 * rows["attention", 32]["cache_bytes"] == 2 * 4 * 64 * 64
    assert rows["hgrn1", 64]["cache_bytes"] == rows["hgrn1", 32]["cache_bytes"] == 2 * 4 * 64
    assert "| hgrn1 | 64 |" in done.stdout and out.with_suffix(".png").exists()


@pytest.mark.slow
def test_the_text_benchmark_trains_all_mixers_at_one_size_and_goes_on_where_it_was(tmp_path):
    topics = importlib.import_module("pydoc_data.topics").topics
    files = [tmp_path / f"{name}.txt" for name in ("train", "valid", "test")]
    for file, topic in zip(files, ("assignment", "if", "while"), strict=True):
        file.write_text(topics[topic])
    train, valid, test = map(str, files)
    out = tmp_path / "text.json"
    command = [sys.executable, str(SCRIPT.with_name("text.py")), "--smoke", "--runs", str(tmp_path / "runs")]
    command += ["--train", train, "--valid", valid, "--test", f"topic={test}", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert (record["smoke"], record["claims"]) == (True, [])
    assert [row["mixer"] for row in record["rows"]] == list_mixers()
    sizes = [row["parameters"] for row in record["rows"]]
    assert max(sizes) <= 1.01 * min(sizes)
    assert len(record["search"]) == 2 * len(list_mixers()) and out.with_suffix(".png").exists()
    scores = record["rows"][0]["tests"]["topic"]
    words, size = len(topics["while"].split()) + topics["while"].count("\n"), len(topics["while"].encode())
    said_twice = [math.log2(scores["word_perplexity"]) * words, scores["bits_per_byte"] * size]
    assert_close(*torch.tensor(said_twice, dtype=torch.float64))
    assert f"| {list_mixers()[0]} |" in done.stdout

    again = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert "tokens/s" not in again.stderr, "finished runs are trained again"
    assert json.loads(out.read_text())["rows"] == record["rows"]
