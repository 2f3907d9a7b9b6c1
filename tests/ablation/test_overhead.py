"""The benchmark of the runner runs, and says what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "overhead.py"


@pytest.mark.slow
def test_the_overhead_benchmark_runs_a_grid_and_reports_copies_of_a_run(tmp_path):
    command = [sys.executable, str(SCRIPT), "--smoke", "--workers", "1", "--out", str(tmp_path / "overhead.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "overhead.json").read_text())
    grid, report = record["grid"], record["report"]
    assert grid["runs"] == 2 and 0 < grid["training_seconds"] < grid["run_seconds"] < grid["wall_seconds"]
    assert grid["overhead"] == pytest.approx(1 - grid["training_seconds"] / grid["wall_seconds"])
    assert report["rows"] == 100 and 0 < report["load_seconds"] < report["report_seconds"]
    assert (record["smoke"], record["claims"]) == (True, [])
