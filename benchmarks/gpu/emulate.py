"""Makes the checks of benchmarks/gpu/run.py without a GPU: compiled code runs in the tests' emulator of PTX.

    python benchmarks/gpu/emulate.py sm_90 --out benchmarks/results/emulated/sm_90.json [--only "hgrn2 both bfloat16"]

All take half an hour, with one row of the batch and 130 tokens. The file is written after every check. A stopped run
resumes, unless the code, the versions or the chip changed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

sys.path.insert(1, str(Path(__file__).parents[2]))  # for the tests' emulator and tolerances

import triton
from correctness import check, checks
from measure import Meter, Record

from mixerzoo.tasks.provenance import provenance
from tests.emulator import TARGETS, emulated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--out", type=Path, metavar="FILE", required=True)
    parser.add_argument("--only", default="", metavar="WORDS", help="checks whose names have all of these words")
    parser.add_argument("--apart", action="store_true", help="warps one by one in random order; several times slower")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    smaller = [replace(one, case={"B": 1, "T": 130} | one.case) for one in checks(smoke=False)]
    chosen = [one for one in smaller if all(word in str(one) for word in arguments.only.split())]
    if not chosen:
        parser.error(f"no check has all of these words: {arguments.only}; remedy: fewer of them")
    new = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "provenance": provenance(sys.argv),
        "target": arguments.target,
        "triton": triton.__version__,
        "correctness": [],
    }
    begun = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else new
    if _made_by(begun) != _made_by(new):
        parser.error(f"{arguments.out} is of {_made_by(begun)}, this is {_made_by(new)}; remedy: another file")
    record = Record(arguments.out, begun)
    rows = record.values["correctness"]
    made = {row["name"] for row in rows}
    meter = Meter(torch.device("cpu"), math.inf, smoke=False)
    todo = [one for one in chosen if str(one) not in made]
    with emulated(arguments.target, apart=arguments.apart):
        for one, row in zip(todo, check(meter, "triton", todo), strict=True):
            rows.append({"name": str(one)} | row)
            record.save()
    wrong = [row for row in rows if not row.get("ok")]
    print(f"{arguments.target}: {len(rows)} checks, {len(wrong)} of them not within their budget")
    sys.exit(1 if wrong else 0)


def _made_by(record: dict[str, Any]) -> str:
    return f"{record['target']}, triton {record['triton']}, commit {record['provenance']['git']}"


if __name__ == "__main__":
    main()
