"""Writes docs/performance.md: the committed GPU runs' measurement of each promise, and the bytes that ops move."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "gpu"))

from goals import claims

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
Table = Callable[[tuple[str, ...], Sequence[tuple[str, ...]]], str]

INTRODUCTION = """\
# Performance

Written by `python docs/generate.py` from the files in `benchmarks/results`; a test keeps it fresh. Shapes are
B,T,H,K with K = V; times are medians of one run in which all contenders took turns.
"""
UNMEASURED = """\
**Not yet measured on a GPU.** `python benchmarks/gpu/run.py --out benchmarks/results/gpu` does that in minutes, first
whether the kernels are right and then how fast they are beside their peers. The goals are those of an H200:
"""
EMULATED = """\
## Right, in an emulator

What Triton compiled for a chip, run instruction by instruction on the CPU by `benchmarks/gpu/emulate.py`, against the
token loop in fp64: outputs, states and all gradients, in every direction, packed, from a state. A budget is twice the
token loop's own error in that precision and a few roundings, in the root mean square.
"""
HOST = """\
## On the host

Where tensors are small, a GPU waits for the host, which checks, plans, allocates and launches. `benchmarks/host.py`
times that without a GPU, on one that does nothing: all but the launch itself, with tensors so small that what torch's
own operations compute hardly counts. Microseconds of a call, medians of contenders in turns.
"""
UNCOUNTED = "Not yet counted: `python benchmarks/bytes.py --out benchmarks/results/bytes.json` needs no GPU.\n"


def performance(table: Table) -> str:
    """Returns the page; `table` lays out Markdown tables."""
    runs = [_read(path) for path in sorted((RESULTS / "gpu").glob("*.json"))]
    measured = [_run(record, table) for record in runs] or [f"{UNMEASURED}\n{_claims(claims([], None), table)}"]
    counted = RESULTS / "bytes.json"
    moved = _bytes(_read(counted), table) if counted.exists() else UNCOUNTED
    emulated = [_read(path) for path in sorted((RESULTS / "emulated").glob("*.json"))]
    checked = [EMULATED, _emulated(emulated, table)] if emulated else []
    timed = RESULTS / "host.json"
    host = [HOST, _host(_read(timed), table)] if timed.exists() else []
    return "\n".join([INTRODUCTION, "## On a GPU\n", *measured, *checked, "## Bytes and launches\n", moved, *host])


def _run(record: dict[str, Any], table: Table) -> str:
    """Describes one GPU's run: the GPU, the promises, and all times."""
    machine, gpu = record["provenance"], record["gpu"]
    copy, matmul = (_number(record["ceilings"][name], 1e-12) for name in ("copy_bandwidth", "matmul_rate"))
    checked, wrong = len(record["correctness"]), sum(not row.get("ok") for row in record["correctness"])
    caption = (
        f"{gpu['memory'] / 2**30:,.0f} GiB, torch {machine['torch']}, triton {record['peers']['triton']},\n"
        f"flash-linear-attention {record['peers']['fla-core'] or 'absent'}, {record['date'][:10]}"
        f"{'' if record['complete'] else ', not run to its end'}.\n"
        f"In the same run a copy moved {copy} TB/s, and a bf16 matrix product ran at {matmul} TFLOP/s.\n"
        f"Of {checked} checks of correctness, {wrong} were not within their budget.\n"
    )
    parts = [f"### {gpu['name']}\n", caption, _claims(record["claims"], table)]
    for what, rows in groupby(record["rows"], key=lambda row: row["what"]):
        parts += [f"{what}:\n", _times(list(rows), table)]
    return "\n".join(parts)


def _emulated(records: list[dict[str, Any]], table: Table) -> str:
    """Returns the passed checks, and the largest error beside its budget, for each chip, op and precision."""
    lines = []
    for record in records:
        kinds = dict.fromkeys((row["op"], row["dtype"]) for row in record["correctness"])
        for op, dtype in kinds:
            rows = [row for row in record["correctness"] if (row["op"], row["dtype"]) == (op, dtype)]
            shares = [row["rms_error"] / row["budget"] for row in rows if row["error"] is None]
            held = f"{sum(bool(row.get('ok')) for row in rows)} of {len(rows)}"
            lines.append((record["target"], record["triton"], op, dtype, held, f"{max(shares):.0%}" if shares else ""))
    return table(("chip", "triton", "op", "precision", "checks that held", "largest share of a budget"), lines)


def _claims(rows: list[dict[str, Any]], table: Table) -> str:
    held = {True: "yes", False: "no", None: ""}
    return table(
        ("promise", "B,T,H,K", "bound", "measured", "holds"),
        [
            (
                row["claim"],
                _shape(row),
                row["bound"],
                "not yet measured" if row["measured"] is None else f"{row['measured']:.2f}",
                held[row["holds"]],
            )
            for row in rows
        ],
    )


def _times(rows: list[dict[str, Any]], table: Table) -> str:
    return table(
        ("B,T,H,K", "who", "pass", "ms", "peak MiB", "of the copy bandwidth", "of the matrix rate"),
        [
            (
                _shape(row),
                row["who"],
                row["pass"],
                row["error"] or _number(row["seconds"], 1e3),
                _number(row["peak_bytes"], 2.0**-20),
                *(f"{row[key]:.0%}" if row[key] else "" for key in ("copy_fraction", "matmul_fraction")),
            )
            for row in rows
        ],
    )


def _bytes(record: dict[str, Any], table: Table) -> str:
    sizes = record["sizes"]
    caption = (
        f"Per token and head, bf16, B={sizes['B']} T={sizes['T']} H={sizes['H']}: every byte that a launch loads or\n"
        "stores, once, as `benchmarks/bytes.py` counts them in Triton's interpreter. Launches are Triton's + torch's,\n"
        "forward and backward; compulsory is what the inputs, the output and their gradients take.\n"
    )
    rows = [
        (
            row["op"],
            str(row["width"]),
            row["who"],
            *(
                ("absent",) * 5
                if row["bytes"] is None
                else (
                    row["launches"],
                    *(f"{row[name]:,.0f}" for name in ("forward", "backward", "bytes")),
                    f"{row['bytes'] / row['compulsory']:.2f}",
                )
            ),
        )
        for row in record["rows"]
    ]
    header = ("op", "K = V", "of", "launches", "bytes forward", "backward", "sum", "/ compulsory")
    return f"{caption}\n{table(header, rows)}"


def _host(record: dict[str, Any], table: Table) -> str:
    peer = "flash-linear-attention"
    theirs = {row["what"]: row["microseconds"] for row in record["rows"] if row["who"] == peer}
    lines = [
        (
            row["what"],
            row["who"],
            str(row["launches"]),
            f"{row['microseconds']:,.0f}" if row["microseconds"] else row["error"],
            f"{theirs[row['what']] / row['microseconds']:.1f}" if theirs[row["what"]] and row["microseconds"] else "",
        )
        for row in record["rows"]
    ]
    machine = record["provenance"]
    caption = (
        f"{machine['cpu']}, torch {machine['torch']}, triton {record['triton']}, {peer} {record[peer] or 'absent'}.\n"
    )
    return f"{caption}\n{table(('hgrn2', 'of', 'Triton launches', 'us', f'{peer} / it'), lines)}"


def _shape(row: dict[str, Any]) -> str:
    return ",".join(map(str, row["shape"]))


def _number(value: float | None, factor: float) -> str:
    return "" if value is None else f"{factor * value:,.{0 if factor * value >= 100 else 3}f}"


def _read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record
