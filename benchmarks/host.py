"""Measures a call's host time for HGRN2, ours and flash-linear-attention's, on an idle GPU that needn't be there.

    python benchmarks/host.py [--smoke] [--out FILE]

If tensors are small, a GPU waits for the host, which checks, plans, allocates and launches. Everything is done here
but the launch itself: Triton's last step is a function that returns. torch's own operations run on the CPU, on tensors
so small that their work hardly counts. Contenders take turns, and medians are compared. If a peer isn't installed, its
row holds the error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
import triton
from idle_gpu import idle_gpu
from torch import Tensor

from mixerzoo.kernels.hgrn2 import hgrn2
from mixerzoo.tasks.provenance import installed_version, provenance

LENGTHS = {"one launch forward": 200, "two launches forward": 300}
WIDTH = 16
OURS, PEER = "mixerzoo", "flash-linear-attention"
TOKEN = "one token"
BOUND = 3.0  # how often our time goes into the peer's, at the least
Run = Callable[[], Any]


def passes(length: int) -> dict[str, dict[str, Run]]:
    """Returns runs by pass and name."""
    q, x, v = (torch.randn(1, length, 1, WIDTH).bfloat16().requires_grad_() for _ in range(3))
    bound = torch.full((1, WIDTH), 0.5, requires_grad=True)
    inputs, dy = (q, x, v, bound), torch.randn_like(v)
    forward = {
        OURS: lambda: hgrn2(*inputs, scale=WIDTH**-0.5, q_activation="silu", backend="triton")[0],
        PEER: lambda: peer()(*inputs),
    }
    both = {who: lambda run=run: torch.autograd.grad(run(), inputs, dy) for who, run in forward.items()}
    return {"inference": {who: torch.no_grad()(run) for who, run in forward.items()}, "forward + backward": both}


def steps() -> dict[str, Run]:
    """Returns runs of one token, from a state."""
    q, x, v = (torch.randn(1, 1, 1, WIDTH).bfloat16() for _ in range(3))
    bound, state = torch.full((1, WIDTH), 0.5), torch.zeros(1, 1, WIDTH, WIDTH)

    def ours(in_place: bool) -> Any:
        options: dict[str, Any] = {"scale": WIDTH**-0.5, "q_activation": "silu", "in_place": in_place}
        return hgrn2(q, x, v, bound, initial_state=state, backend="triton", **options)

    def theirs() -> Any:
        from fla.ops.gla import fused_recurrent_gla

        activated, k, log_f = gates(q, x, v, bound)
        return fused_recurrent_gla(activated, k, v, gk=log_f, initial_state=state, output_final_state=True)

    runs = {OURS: lambda: ours(False), f"{OURS}, in place": lambda: ours(True), PEER: theirs}
    return {who: torch.no_grad()(run) for who, run in runs.items()}


def peer() -> Callable[..., Tensor]:
    from fla.ops.gla import chunk_gla

    def run(q: Tensor, x: Tensor, v: Tensor, bound: Tensor) -> Tensor:
        activated, k, log_f = gates(q, x, v, bound)
        return chunk_gla(activated, k, v, log_f)[0]

    return run


def gates(q: Tensor, x: Tensor, v: Tensor, bound: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Does the chain between projections and kernel in flash-linear-attention's layer."""
    log_f = torch.logaddexp(bound.log(), torch.log1p(-bound) + F.logsigmoid(x))
    return F.silu(q), (1 - log_f.exp()).to(v), log_f


def peer_on_an_idle_gpu() -> Any:
    """Patches torch and Triton for flash-linear-attention.

    It asks torch for the GPU, and its autotuner would time launches that run nothing.
    """
    from triton.runtime.autotuner import Autotuner

    properties = SimpleNamespace(shared_memory_per_block_optin=227 * 1024, multi_processor_count=132)
    return patch.multiple(
        torch.cuda,
        get_device_name=lambda device=0: "NVIDIA H200",
        get_device_capability=lambda device=0: (9, 0),
        get_device_properties=lambda device=0: properties,
        current_device=lambda: 0,
        device=lambda device: nullcontext(),
    ), patch.object(Autotuner, "_bench", lambda self, *arguments, **named: [1.0, 1.0, 1.0])


def compete(runs: dict[str, Run], rounds: int) -> dict[str, dict[str, Any]]:
    """Returns medians by name; if a peer fails, its row holds the error."""
    errors: dict[str, str] = {}
    times: dict[str, list[float]] = {who: [] for who in runs}
    for who, run in runs.items():
        try:
            for _ in range(3):
                run()
        except Exception as error:
            errors[who] = f"{type(error).__name__}: {error}"[:200]
    for _ in range(rounds):
        for who, run in runs.items():
            if who not in errors:
                start = perf_counter()
                run()
                times[who].append(perf_counter() - start)
    return {
        who: {"microseconds": None if who in errors else 1e6 * statistics.median(times[who]), "error": errors.get(who)}
        for who in runs
    }


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the promises for both passes and inference, as `measured` against `bound`; None if a peer is absent."""
    times = {(row["what"], row["who"]): row["microseconds"] for row in rows}
    promised = []
    for what in dict.fromkeys(row["what"] for row in rows if row["what"] != TOKEN):
        ours, theirs = times[what, OURS], times[what, PEER]
        measured = theirs / ours if theirs else None
        holds = None if measured is None else measured >= BOUND
        promised.append({"claim": f"{what}: {PEER} / ours", "measured": measured, "bound": BOUND, "holds": holds})
    return promised


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few rounds: does it run")
    parser.add_argument("--out", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    launches = 0

    def launched(*what: Any) -> None:
        nonlocal launches
        launches += 1

    rows = []
    cuda, autotuner = peer_on_an_idle_gpu()
    with idle_gpu(launched), cuda, autotuner:
        groups = {f"{name}, {how}": runs for how, length in LENGTHS.items() for name, runs in passes(length).items()}
        for what, runs in (groups | {TOKEN: steps()}).items():
            for who, result in compete(runs, 10 if arguments.smoke else 500).items():
                launches = 0
                if result["error"] is None:
                    runs[who]()
                rows.append({"what": what, "who": who, "launches": launches} | result)
                time = result["error"] or f"{result['microseconds']:6.0f} us, {launches} Triton launches"
                print(f"{what:45} {who:25} {time}")
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "smoke": arguments.smoke,
        "provenance": provenance(sys.argv),
        "triton": triton.__version__,
        "flash-linear-attention": installed_version("flash-linear-attention"),
        "rows": rows,
        "claims": [] if arguments.smoke else claims(rows),
    }
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
