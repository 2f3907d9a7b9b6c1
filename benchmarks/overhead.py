"""Measures the ablation runner's cost besides training, and the time to load and report 10,000 finished runs.

    python benchmarks/overhead.py [--workers 2] [--runs 4] [--seconds 20] [--rows 10000] [--smoke] [--out FILE]

The first part is `mixerzoo ablate` as a user calls it, with some runs for every worker. Wall time of the workers that
learning curves don't count as training is overhead: imports, data, evaluation and the report included. The second part
makes copies of one of those runs with other settings and values, by the store's own writer. It times `mixerzoo report`
on them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from itertools import islice, product
from pathlib import Path
from time import perf_counter
from typing import Any

from mixerzoo import list_mixers
from mixerzoo.ablation.running.execute import Options, execute
from mixerzoo.ablation.running.store import Row, Store
from mixerzoo.tasks import BackboneConfig, RunConfig, TrainConfig, build_task
from mixerzoo.tasks.provenance import provenance
from mixerzoo.tasks.train import Point

OVERHEAD, REPORT = 0.10, 10.0


def ablate(directory: Path, steps: int, workers: int, runs: int) -> dict[str, Any]:
    """Runs one grid by the command line, and accounts for its wall time."""
    command = [sys.executable, "-m", "mixerzoo.cli", "ablate", "--mixers", "attention", "--task", "mqar"]
    command += ["--match", "none", "--no-plots", "--threads", "1"]
    command += ["--seeds", str(runs * workers), "--workers", str(workers)]
    command += ["--set", f"train.steps={steps}", "--set", f"train.evaluate_every={steps}", "--name", directory.name]
    started = perf_counter()
    subprocess.run([*command, "--runs-dir", str(directory.parent)], check=True, stdout=sys.stderr)
    wall = perf_counter() - started
    rows = Store(directory).rows()
    training = sum(row.curve[-1]["seconds"] for row in rows)
    return {
        "runs": len(rows),
        "runs_per_worker": runs,
        "steps": steps,
        "seconds_per_run": training / len(rows),
        "wall_seconds": wall,
        "training_seconds": training,
        "run_seconds": sum(row.result["seconds"] for row in rows),
        "overhead": 1 - training / (workers * wall),
    }


def one_run(directory: Path, steps: int) -> Row:
    store, run = Store(directory), configuration("attention", 64, 2, 1e-2, 0, steps)
    store.start(run)
    record = store.record(run.run_id)
    record.finish(execute(run, record, lambda event: None, Options()))
    (row,) = store.rows()
    return row


def configuration(mixer: str, dim: int, depth: int, lr: float, seed: int, steps: int) -> RunConfig:
    return RunConfig(build_task("mqar"), BackboneConfig(mixer, dim, depth), TrainConfig(steps, lr=lr), seed)


def variations(row: Row, count: int) -> Iterator[RunConfig]:
    """Varies mixers, widths, depths and learning rates, each with five seeds."""
    steps, task = row.config["train"]["steps"], build_task("mqar")
    axes = product(list_mixers(), range(64, 704, 64), range(2, 6), [1e-3 * 1.3**n for n in range(10)], range(5))
    return (replace(configuration(*values, steps), task=task) for values in islice(axes, count))


def copy(row: Row, store: Store, count: int) -> None:
    chance = random.Random(0)
    for run in variations(row, count):
        shift = chance.gauss(0, 0.05)
        store.start(run)
        record = store.record(run.run_id)
        for point in row.curve:
            record.append(Point(**{**point, "loss": point["loss"] + shift}))
        record.finish({**row.result, "value": row.result["value"] + shift, "valid": row.result["valid"] + shift})


def timed_report(directory: Path) -> dict[str, Any]:
    started = perf_counter()
    rows = len(Store(directory).rows())
    loaded = perf_counter() - started
    command = [sys.executable, "-m", "mixerzoo.cli", "report", str(directory)]
    started = perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {"rows": rows, "load_seconds": loaded, "report_seconds": perf_counter() - started}


def claims(grid: dict[str, Any], report: dict[str, Any]) -> list[dict[str, Any]]:
    runs = f"{grid['runs_per_worker']} runs of {grid['seconds_per_run']:.0f} s for each worker"
    texts = (
        (f"share of wall time that isn't training, {runs}", "overhead", OVERHEAD),
        (f"seconds to load and report {report['rows']:,} runs", "report_seconds", REPORT),
    )
    found = {**grid, **report}
    return [
        {"claim": claim, "measured": found[key], "bound": f"<= {bound:g}", "holds": found[key] <= bound}
        for claim, key, bound in texts
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes of the grid")
    parser.add_argument("--runs", type=int, default=4, help="that each of them carries out")
    parser.add_argument("--seconds", type=float, default=20.0, help="of training in each run")
    parser.add_argument("--rows", type=int, default=10_000, help="finished runs to report")
    parser.add_argument("--smoke", action="store_true", help="runs of a second, a hundred rows: does it run")
    parser.add_argument("--out", type=Path, help="write the results there, as JSON")
    arguments = parser.parse_args()
    runs, seconds, rows = (2, 1.0, 100) if arguments.smoke else (arguments.runs, arguments.seconds, arguments.rows)
    with tempfile.TemporaryDirectory() as folder:
        row = one_run(Path(folder) / "one", steps=50)
        steps = max(50, round(seconds * row.result["steps"] / row.curve[-1]["seconds"]))
        grid = ablate(Path(folder) / "grid", steps, arguments.workers, runs)
        copies = Store(Path(folder) / "copies")
        copy(row, copies, rows)
        report = timed_report(copies.root)
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "smoke": arguments.smoke,
        "provenance": provenance(sys.argv),
        "workers": arguments.workers,
        "load_average": os.getloadavg(),
        "claims": [] if arguments.smoke else claims(grid, report),
        "grid": grid,
        "report": report,
    }
    print(json.dumps({"grid": grid, "report": report, "claims": record["claims"]}, indent=1))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
