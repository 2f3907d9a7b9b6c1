"""Measures speed and memory of the ops on a CPU, side by side with their peers in one process.

    python benchmarks/cpu.py [--smoke] [--out FILE]

Contenders take turns (A B C A B C ...), so that a change in the machine's load meets all of them; medians are compared.
A slow contender stops once its budget is used up. A peer that isn't installed is reported as absent.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixerzoo import build_mixer, list_mixers, mixer_info
from mixerzoo.kernels.gated_linear_attention import cases as gla_cases
from mixerzoo.kernels.gated_linear_attention import gated_linear_attention
from mixerzoo.kernels.gated_scan import cases as scan_cases
from mixerzoo.kernels.gated_scan import gated_scan
from mixerzoo.kernels.hgrn2 import cases as hgrn2_cases
from mixerzoo.kernels.hgrn2 import hgrn2
from mixerzoo.mixers.parts.contract import Mixer
from mixerzoo.tasks.provenance import installed_version, provenance

Run = Callable[[], Any]
Op = Callable[..., Tensor]
Inputs = dict[str, Any]

OURS = ("hgrn2", "gated_linear_attention")
PLAIN: Inputs = {"initial_state": False, "dtype": torch.float32}


@dataclass(frozen=True)
class Sizes:
    heads: int = 4
    width: int = 128  # K = V
    short: int = 2048
    long: int = 8192
    scan_width: int = 512
    memory_lengths: tuple[int, ...] = (2048, 4096, 8192, 16384)
    step_dim: int = 512
    positions: tuple[int, int] = (10, 100_000)
    rounds: int = 9
    step_rounds: int = 300
    budget: float = 30.0  # seconds; a contender that has used them sits out the rest


SMOKE = Sizes(
    heads=2, width=16, short=64, long=256, scan_width=16, memory_lengths=(256,), step_dim=128, positions=(10, 1000),
    rounds=2, step_rounds=5, budget=1.0,
)  # fmt: skip


def gla_inputs(sizes: Sizes, T: int) -> Inputs:
    return gla_cases.make_inputs(1, T, sizes.heads, sizes.width, sizes.width, **PLAIN)


def hgrn2_inputs(sizes: Sizes, T: int) -> Inputs:
    return hgrn2_cases.make_inputs(1, T, sizes.heads, sizes.width, sizes.width, **PLAIN)


def scan_inputs(sizes: Sizes, T: int) -> Inputs:
    return scan_cases.make_inputs(1, T, sizes.scan_width, **PLAIN)


def attention_inputs(sizes: Sizes, T: int) -> Inputs:
    """Makes inputs [B,H,T,K], the fastest layout of torch's attention."""
    inputs = gla_inputs(sizes, T)
    names = {"q": "query", "k": "key", "v": "value"}
    return {theirs: inputs[ours].transpose(1, 2).contiguous() for ours, theirs in names.items()}


OPS: dict[str, tuple[Op, Callable[[Sizes, int], Inputs]]] = {
    "hgrn2": (lambda **x: hgrn2(**x)[0], hgrn2_inputs),
    "gated_linear_attention": (lambda **x: gated_linear_attention(**x)[0], gla_inputs),
    "scaled_dot_product_attention": (lambda **x: F.scaled_dot_product_attention(**x, is_causal=True), attention_inputs),
    "gated_scan": (lambda **x: gated_scan(**x)[0], scan_inputs),
}
# flash-linear-attention's token loops (its kernels need a GPU), and the op of ours that computes the same.
PEERS = {
    "naive_recurrent_gla": ("fla.ops.gla.naive", ("q", "k", "v", "log_f"), "gated_linear_attention"),
    "naive_recurrent_hgrn": ("fla.ops.hgrn.naive", ("x", "log_f"), "gated_scan"),
}


def find_peer(name: str) -> Op | None:
    """Returns the peer as a function of our op's inputs; None if its package is missing.

    Raises AssertionError if it computes something else: then the times would not compare the same work.
    """
    module, arguments, ours = PEERS[name]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that there is no GPU
            function = getattr(import_module(module), name)
    except ImportError:
        return None
    op, make_inputs = OPS[ours]
    inputs = make_inputs(SMOKE, 70)
    torch.testing.assert_close(function(*(inputs[a] for a in arguments))[0], op(**inputs), rtol=1e-4, atol=1e-4)
    return lambda **x: function(*(x[a] for a in arguments))[0]


def forward_backward(op: Op, inputs: Inputs) -> Run:
    """Runs both passes once, with gradients for all inputs. The first call draws the output's gradient."""
    tensors = [x.requires_grad_() for x in inputs.values() if isinstance(x, Tensor)]
    gradient: list[Tensor] = []

    def run() -> None:
        y = op(**inputs)
        if not gradient:
            gradient.append(torch.randn_like(y))
        torch.autograd.grad(y, tensors, gradient[0])

    return run


def speed(sizes: Sizes) -> list[dict[str, Any]]:
    """Returns the seconds of one forward and backward pass: a row for every op and length."""
    contenders, absent = {}, []
    plan = [(name, T) for T in (sizes.short, sizes.long) for name in (*OURS, "scaled_dot_product_attention")]
    for name, T in (*plan, ("gated_scan", sizes.long)):
        op, make_inputs = OPS[name]
        contenders[name, T] = forward_backward(op, make_inputs(sizes, T))
    for name, T in (("naive_recurrent_gla", sizes.short), ("naive_recurrent_hgrn", sizes.long)):
        if (peer := find_peer(name)) is None:
            absent.append({"op": name, "T": T, "seconds": None, "all": []})
        else:
            contenders[name, T] = forward_backward(peer, OPS[PEERS[name][2]][1](sizes, T))
    times = interleave(contenders, sizes.rounds, sizes.budget, _say)
    rows = [
        {"op": name, "T": T, "seconds": statistics.median(seconds), "all": seconds}
        for (name, T), seconds in times.items()
    ]
    return rows + absent


def interleave(
    contenders: dict[Any, Run], rounds: int, budget: float, progress: Callable[[str], None] = lambda message: None
) -> dict[Any, list[float]]:
    """Returns the seconds of every call. The first warms up; it counts only if the budget allowed no other."""
    times: dict[Any, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            if sum(times[name]) < budget:
                progress(f"round {turn}/{rounds}: {name}")
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    return {name: seconds[1:] or seconds for name, seconds in times.items()}


def memory(sizes: Sizes) -> list[dict[str, Any]]:
    """Returns the peak memory of one forward and backward pass, inputs and gradients included.

    Every number is measured in a fresh process.
    """
    rows = []
    for name in OPS:
        for T in sizes.memory_lengths:
            _say(f"memory: {name}, T={T}")
            with get_context("spawn").Pool(1) as pool:
                rows.append({"op": name, "T": T, "bytes": pool.apply(peak_memory, (name, sizes, T))})
    return rows


def peak_memory(name: str, sizes: Sizes, T: int) -> int | None:
    """Returns the peak of the process's resident memory above its start, in bytes; None without Linux' /proc."""
    op, make_inputs = OPS[name]
    forward_backward(op, make_inputs(sizes, 64))()  # starts the threads and loads what is loaded late
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
        before = _proc_status("VmHWM")
        forward_backward(op, make_inputs(sizes, T))()
        return _proc_status("VmHWM") - before
    except OSError:
        return None


def steps(sizes: Sizes) -> list[dict[str, Any]]:
    """Returns the seconds of one `step` early and late in a sequence, for every mixer with a state of constant size."""
    rows = []
    for name in list_mixers():
        if "constant_state" not in mixer_info(name).capabilities:
            continue
        _say(f"step: {name}")
        mixer = build_mixer(name, dim=sizes.step_dim).eval()
        with torch.inference_mode():
            contenders: dict[Any, Run] = {
                position: partial(mixer.step, torch.randn(1, sizes.step_dim), state)
                for position, state in zip(sizes.positions, _states_at(mixer, sizes.positions), strict=True)
            }
            times = interleave(contenders, sizes.step_rounds, sizes.budget)
        medians = {f"at {position}": statistics.median(seconds) for position, seconds in times.items()}
        rows.append({"mixer": name, "dim": sizes.step_dim, **medians})
    return rows


def claims(sizes: Sizes, results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Returns the ops' promises, as `measured` against `bound`; `measured` is None if something is absent."""
    seconds = {(row["op"], row["T"]): row["seconds"] for row in results["speed"]}
    peak = {(row["op"], row["T"]): row["bytes"] for row in results["memory"]}
    short, long = sizes.short, sizes.long
    rows: list[tuple[str, float | None, str, float]] = []
    for op in OURS:
        for peer, T, bound in (
            ("naive_recurrent_gla", short, 30.0),
            ("scaled_dot_product_attention", short, 1.0),
            ("scaled_dot_product_attention", long, 3.0),
        ):
            rows.append((f"time of {peer} / {op}, T={T}", _ratio(seconds, (peer, T), (op, T)), ">=", bound))
        rows.append((f"{op}: time({long}) / time({short})", _ratio(seconds, (op, long), (op, short)), "<=", 4.5))
    hgrn = _ratio(seconds, ("naive_recurrent_hgrn", long), ("gated_scan", long))
    rows.append((f"time of naive_recurrent_hgrn / gated_scan, T={long}", hgrn, ">=", 20.0))
    first, last = sizes.memory_lengths[0], sizes.memory_lengths[-1]
    for op in (*OURS, "gated_scan"):
        growth = _ratio(peak, (op, last), (op, first))
        rows.append((f"{op}: peak memory({last}) / memory({first})", growth, "<=", 1.1 * last / first))
    early, late = sizes.positions
    for row in results["steps"]:
        rows.append((f"{row['mixer']}: step at {late} / at {early}", row[f"at {late}"] / row[f"at {early}"], "<=", 1.1))
    return [{"claim": what, "measured": value, "bound": f"{sign} {bound:g}", "holds": _holds(value, sign, bound)}
            for what, value, sign, bound in rows]  # fmt: skip


def report(record: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    machine = record["provenance"]
    speed_rows = [(row["op"], row["T"], _milliseconds(row["seconds"]), len(row["all"])) for row in record["speed"]]
    memory_rows = [
        (row["op"], row["T"], "not measured" if row["bytes"] is None else f"{row['bytes'] / 2**20:,.0f}")
        for row in record["memory"]
    ]
    early, late = record["sizes"]["positions"]
    step_rows = [(row["mixer"], *(_milliseconds(row[f"at {p}"]) for p in (early, late))) for row in record["steps"]]
    claim_rows = [
        (row["claim"], "absent" if row["measured"] is None else f"{row['measured']:.2f}", row["bound"],
         {True: "yes", False: "NO", None: "-"}[row["holds"]])
        for row in record["claims"]
    ]  # fmt: skip
    heads, width = record["sizes"]["heads"], record["sizes"]["width"]
    tables: list[tuple[tuple[str, ...], list[tuple[Any, ...]]]] = [
        (("forward + backward", "T", "ms", "calls"), speed_rows),
        (("peak memory", "T", "MiB"), memory_rows),
        ((f"step, D={record['sizes']['step_dim']}", f"ms at {early:,}", f"ms at {late:,}"), step_rows),
        (("claim", "measured", "bound", "holds"), claim_rows),
    ]
    return "\n".join(
        [
            f"{machine['cpu']}, {machine['cores']} cores, {record['threads']} threads, torch {machine['torch']}, "
            f"{record['date'][:10]}, fp32, B=1 H={heads} K=V={width}, gated_scan D={record['sizes']['scan_width']}\n",
            *(_table(header, rows) for header, rows in tables if rows),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, to see that it runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON")
    arguments = parser.parse_args()
    sizes = SMOKE if arguments.smoke else Sizes()
    torch.manual_seed(0)
    results = {"memory": memory(sizes), "speed": speed(sizes), "steps": steps(sizes)}
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "smoke": arguments.smoke,
        "provenance": provenance(sys.argv),
        "peers": {package: installed_version(package) for package in ("flash-linear-attention", "fla-core")},
        "threads": torch.get_num_threads(),
        "sizes": asdict(sizes),
        "claims": [] if arguments.smoke else claims(sizes, results),
        **results,
    }
    _say("")
    print(report(record))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _states_at(mixer: Mixer, positions: tuple[int, ...]) -> list[Any]:
    """Returns the states of one sequence after so many tokens, every token really read."""
    states, state, position = [], None, 0
    for target in positions:
        while position < target:
            chunk = torch.randn(1, min(2000, target - position), mixer.dim)
            state = mixer.prefill(chunk, state).state
            position += chunk.shape[1]
        states.append(state)
    return states


def _proc_status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _ratio(values: dict[Any, float | None], numerator: Any, denominator: Any) -> float | None:
    top, bottom = values.get(numerator), values.get(denominator)
    return None if top is None or not bottom else top / bottom


def _holds(value: float | None, sign: str, bound: float) -> bool | None:
    return None if value is None else value >= bound if sign == ">=" else value <= bound


def _milliseconds(seconds: float | None) -> str:
    return "absent" if seconds is None else f"{1000 * seconds:,.3g}" if seconds < 1 else f"{1000 * seconds:,.0f}"


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (header, ["---"] * len(header), *rows)) + "\n"


def _say(message: str) -> None:
    print(f"\r\033[K{message}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
