"""Checks HGRN2 and its relatives on a GPU, and times them side by side with their peers in one process.

    python benchmarks/gpu/run.py --out DIR [--smoke] [--minutes 8] [--only correctness,mixer,hgrn2]

Contenders take turns and medians are compared; the L2 cache is flushed before every call. Warm-up doesn't count; it
includes the peers' search for their configurations. Bandwidth and matrix rate are measured in the same run. If a
contender fails or isn't installed, its row holds the error. DIR/<device>.json is written after every group.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any

import torch

sys.path.insert(1, str(Path(__file__).parents[2]))  # for the tests' tolerances

from contenders import Group, groups
from correctness import check, check_captured, checks
from goals import FORWARD, claims
from measure import LATE, Meter, Record, Result, attempt, ceilings, compete, say

from mixerzoo.tasks.provenance import installed_version, provenance

PEERS = ("flash-linear-attention", "fla-core", "transformers", "triton")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="DIR", required=True)
    parser.add_argument("--smoke", action="store_true", help="tiny, on the CPU, to see that it runs")
    parser.add_argument("--minutes", type=float, default=8.0, help="after so many, nothing new begins")
    parser.add_argument("--only", type=lambda text: text.split(","), help="correctness, and names of what is timed")
    arguments = parser.parse_args()
    if not (arguments.smoke or torch.cuda.is_available()):
        parser.error("no GPU here; remedy: --smoke runs everything tiny on the CPU")
    torch.manual_seed(0)
    if arguments.smoke:
        torch.set_num_threads(1)
    device = torch.device("cpu" if arguments.smoke else "cuda")
    parts = dict.fromkeys(("correctness", *(what for what, _, _ in groups(device, arguments.smoke))))
    if unknown := set(arguments.only or ()) - set(parts):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; known: {', '.join(parts)}")
    meter = Meter(device, 60 * arguments.minutes, arguments.smoke)
    name = "smoke" if arguments.smoke else torch.cuda.get_device_name().lower().replace(" ", "-")
    record = Record(arguments.out / f"{name}.json", header(arguments.smoke, device))
    measure(record, meter, arguments.only)
    print(report(record.values))


def header(smoke: bool, device: torch.device) -> dict[str, Any]:
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "smoke": smoke,
        "provenance": provenance(sys.argv),
        "gpu": None if smoke else _gpu(device),
        "peers": {package: installed_version(package) for package in PEERS},
        "complete": False,
        "ceilings": {},
        "correctness": [],
        "rows": [],
        "claims": [],
    }


def measure(record: Record, meter: Meter, only: list[str] | None) -> None:
    values = record.values
    values["ceilings"] = ceilings(meter)
    say(f"ceilings {values['ceilings']}")
    record.save()
    if only is None or "correctness" in only:
        backend = "torch" if meter.smoke else "triton"
        for row in chain(check(meter, backend, checks(smoke=meter.smoke)), check_captured(meter, backend)):
            values["correctness"].append(row)
            record.save()
    for what, shape, build in groups(meter.device, meter.smoke):
        if only is None or what in only:
            for row in time_group(build, meter, values["ceilings"]):
                values["rows"].append({"what": what, "shape": list(shape)} | row)
                say(f"{what} {shape} {row['who']}, {row['pass']}: {row['error'] or row['seconds']}")
                values["claims"] = [] if meter.smoke else claims(values["rows"], values["ceilings"]["copy_bandwidth"])
                record.save()
            gc.collect()
            if meter.cuda:
                attempt(torch.cuda.empty_cache)
    values["complete"] = only is None and not meter.late
    record.save()


def time_group(build: Callable[[], Group], meter: Meter, limits: dict[str, float | None]) -> Iterator[dict[str, Any]]:
    """Returns a row for every contender and pass."""
    group, error = (None, LATE) if meter.late else attempt(build)
    if group is None:
        yield {"who": "all", "pass": "all"} | _numbers(Result([], error=error), None, None, limits)
        return
    built = {who: attempt(build_one) for who, build_one in group.contenders.items()}
    for name in group.passes:
        runs = {who: ready.forward if name == FORWARD else ready.both for who, (ready, _) in built.items() if ready}
        results = compete(runs, meter)
        for who, (_, error) in built.items():
            result = results.get(who, Result([], error=error))
            numbers = _numbers(result, group.bytes.get(name), group.flops.get(name), limits)
            yield {"who": who, "pass": name} | numbers


def _numbers(
    result: Result, moved: float | None, flops: float | None, limits: dict[str, float | None]
) -> dict[str, Any]:
    seconds = result.median

    def fraction(work: float | None, limit: float | None) -> float | None:
        return work / seconds / limit if work and seconds and limit else None

    return {
        "seconds": seconds,
        "peak_bytes": result.peak,
        "bytes": moved,
        "flops": flops,
        "copy_fraction": fraction(moved, limits["copy_bandwidth"]),
        "matmul_fraction": fraction(flops, limits["matmul_rate"]),
        "error": result.error,
        "all": result.seconds,
    }


def report(record: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    lines = ["| what | B,T,H,K | who | pass | ms | peak MiB | of copy | of matmul |", "|" + " --- |" * 8]
    for row in record["rows"]:
        time = row["error"] or ("" if row["seconds"] is None else f"{1000 * row['seconds']:.3f}")
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:,.0f}"
        share = ("" if row[key] is None else f"{row[key]:.0%}" for key in ("copy_fraction", "matmul_fraction"))
        shape = ",".join(map(str, row["shape"]))
        lines.append(f"| {' | '.join((row['what'], shape, row['who'], row['pass'], time, peak, *share))} |")
    wrong = [row for row in record["correctness"] if not row.get("ok")]
    lines += ["", f"correctness: {len(record['correctness'])} checks, {len(wrong)} of them not within their budget"]
    return "\n".join(lines + [f"  {row}" for row in wrong])


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
    }


if __name__ == "__main__":
    main()
