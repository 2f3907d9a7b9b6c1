"""Trains every mixer on scikit-learn's handwritten digits: accuracy and time of `mixerzoo train vision`'s default.

    python benchmarks/digits.py [--threads 2] [--smoke] [--out FILE]

One mixer runs after the other, each in a process of its own, by the command that a user would give.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

from mixerzoo import list_mixers
from mixerzoo.tasks.provenance import provenance

ACCURACY, SECONDS = 97.0, 180.0


def train(mixer: str, threads: int, settings: list[str]) -> dict[str, Any]:
    """Runs one training and returns its result; `seconds` is the whole command's, imports and evaluation included.

    `cpu_seconds` is the time that cores worked on it; a busy machine doesn't change it.
    """
    command = [sys.executable, "-m", "mixerzoo.cli", "train", "vision", "--data", "digits"]
    command += ["--model", f"zoo_{mixer}_tiny_patch16_224", *settings]
    started, cpu_before = perf_counter(), cpu_seconds()
    with tempfile.TemporaryDirectory() as out:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run([*command, "--out", out], check=True, stdout=sys.stderr, env=environment)
        result = json.loads((Path(out) / "result.json").read_text(encoding="utf-8"))
    keys = ("parameters", "images", "best_epoch", "epochs", "config")
    return {
        "mixer": mixer,
        "seconds": perf_counter() - started,
        "cpu_seconds": cpu_seconds() - cpu_before,
        "top1": result["test"]["top1"],
        "top1_last_epoch": result["test_last_epoch"]["top1"],
        "train_seconds": result["seconds"],
        **{key: result[key] for key in keys},
    }


def cpu_seconds() -> float:
    """Returns the CPU time of all ended processes that this one has started."""
    times = os.times()
    return times.children_user + times.children_system


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "claim": f"{row['mixer']}: {what}",
            "measured": row[key],
            "bound": f"{'>=' if least else '<='} {bound:g}",
            "holds": row[key] >= bound if least else row[key] <= bound,
        }
        for row in rows
        for what, key, bound, least in (
            ("test accuracy in percent", "top1", ACCURACY, True),
            ("seconds", "seconds", SECONDS, False),
        )
    ]


def report(record: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    machine = record["provenance"]
    lines = ["| mixer | test accuracy % | last epoch % | parameters | seconds | CPU seconds |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    lines += [
        f"| {row['mixer']} | {row['top1']:.2f} | {row['top1_last_epoch']:.2f} | {row['parameters']:,} "
        f"| {row['seconds']:.0f} | {row['cpu_seconds']:.0f} |"
        for row in record["rows"]
    ]
    origin = f"{machine['cpu']}, {record['threads']} threads, torch {machine['torch']}, timm {machine['timm']}"
    return "\n".join([f"{origin}, {record['date'][:10]}\n", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of torch, for every run")
    parser.add_argument("--smoke", action="store_true", help="one epoch of two mixers: does it run")
    parser.add_argument("--out", type=Path, help="write the results there, as JSON")
    arguments = parser.parse_args()
    mixers, settings = (list_mixers()[:2], ["--set", "train.epochs=1"]) if arguments.smoke else (list_mixers(), [])
    rows = [train(mixer, arguments.threads, settings) for mixer in mixers]
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "smoke": arguments.smoke,
        "provenance": provenance(sys.argv),
        "threads": arguments.threads,
        "load_average": os.getloadavg(),
        "claims": [] if arguments.smoke else claims(rows),
        "rows": rows,
    }
    print(report(record))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
