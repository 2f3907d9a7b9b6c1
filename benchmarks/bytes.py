"""Counts the bytes that HGRN2 moves, forward and backward, without a GPU: ours and flash-linear-attention's.

    python benchmarks/bytes.py [--smoke] [--out FILE]

Both run in Triton's interpreter, which watches every load and store: `mixerzoo.kernels.check.bytes` says what counts.
A peer that isn't installed is reported as absent. Its kernels run unchanged; `peer_in_interpreter` gives them what they
need to run there. Bytes don't depend on values, and per token hardly on the length.
"""

from __future__ import annotations

import argparse
import builtins
import importlib
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported

import torch
import torch.nn.functional as F
from torch import Tensor

from mixerzoo.kernels.check.bytes import Moved, Passes, differentiated, measure
from mixerzoo.kernels.gated_linear_attention.triton_examples import passes
from mixerzoo.kernels.gated_linear_attention.triton_plan import Call
from mixerzoo.tasks.provenance import installed_version, provenance

TARGET = 6000.0  # bytes per token and head, forward and backward, K = V = 128


@dataclass(frozen=True)
class Sizes:
    B: int = 1
    T: int = 2048
    H: int = 1
    widths: tuple[int, ...] = (64, 128)  # K = V


SMOKE = Sizes(T=128, widths=(16,))
Op = Callable[[list[Tensor], int], Passes]  # inputs, tokens times heads


def our_hgrn2(inputs: list[Tensor], token_heads: int) -> Passes:
    q, logits, v, lower_bound = inputs
    return passes(Call(q, v, logits=logits, lower_bound=lower_bound, activation="silu"))


def our_gla(inputs: list[Tensor], token_heads: int) -> Passes:
    q, k, v, log_f = inputs
    return passes(Call(q, v, k, log_f))


def peer(function: Callable[..., Tensor]) -> Op:
    return lambda inputs, token_heads: differentiated(function, inputs, token_heads)


def peer_hgrn2(q: Tensor, x: Tensor, v: Tensor, lower_bound: Tensor) -> Tensor:
    """Does the peer's HGRN2 layer between the projections and the norm, in any layer but the first."""
    swish = importlib.import_module("fla.modules.activations").swish
    log_f = torch.logaddexp(lower_bound.log(), torch.log1p(-lower_bound) + F.logsigmoid(x))
    k = (1 - log_f.exp()).to(v)
    return peer_gla(swish(q), k, v, log_f)


def peer_gla(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor) -> Tensor:
    return importlib.import_module("fla.ops.gla").chunk_gla(q, k, v, log_f)[0]


# (op, whose, function, its inputs)
CONTENDERS: tuple[tuple[str, str, Op, tuple[str, ...]], ...] = (
    ("hgrn2", "mixerzoo", our_hgrn2, ("q", "x", "v", "lower_bound")),
    ("hgrn2", "flash-linear-attention", peer(peer_hgrn2), ("q", "x", "v", "lower_bound")),
    ("gated_linear_attention", "mixerzoo", our_gla, ("q", "k", "v", "log_f")),
    ("gated_linear_attention", "flash-linear-attention", peer(peer_gla), ("q", "k", "v", "log_f")),
)


def make_inputs(names: tuple[str, ...], sizes: Sizes, width: int) -> list[Tensor]:
    """Makes inputs in bf16; the lower bound, a parameter, is in fp32."""
    shapes = {"lower_bound": (sizes.H, width)}
    full = (sizes.B, sizes.T, sizes.H, width)
    return [
        torch.full(shapes.get(name, full), -0.5 if name == "log_f" else 0.5)
        .to(torch.float32 if name == "lower_bound" else torch.bfloat16)
        .requires_grad_()
        for name in names
    ]


def row(op: str, who: str, width: int, moved: Moved) -> dict[str, Any]:
    return {
        "op": op,
        "who": who,
        "width": width,
        "launches": moved.launches,
        "forward": moved.forward_bytes,
        "backward": moved.backward_bytes,
        "bytes": moved.bytes,
        "compulsory": moved.compulsory,
        "requested": moved.requested,
        "traffic": {name: [asdict(t) for t in getattr(moved, name)] for name in ("forward", "backward")},
    }


def peer_in_interpreter() -> bool:
    """Makes flash-linear-attention's kernels run in this process. Returns False if it isn't installed.

    1. It asks Triton's driver for a device when it is imported, and its autotuner for times. All configurations are as
       good here, so the first is taken.
    2. Its kernels use loop variables as tensors; in the interpreter they are plain ints.
    3. Comparisons of two scalars must be bool, so that they go into a mask together with tensors.
    """
    if importlib.util.find_spec("fla") is None:
        return False
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cpu", "", 32),
            get_current_device=lambda: 0,
            get_benchmarker=lambda: lambda call, quantiles=None, **rest: [0.0] * 3,
        )
    )
    run, compute = GridExecutor.__call__, InterpreterBuilder.binary_op

    def run_with_scalar_loops(executor: Any, *args: Any, **kwargs: Any) -> None:
        modules = [vars(module) for name, module in sys.modules.items() if name.startswith("fla.")]
        for module in modules:
            module["range"] = _scalars
        try:
            run(executor, *args, **kwargs)
        finally:
            for module in modules:
                module.pop("range", None)  # a module may have two names

    def compute_bool(builder: Any, left: Any, right: Any, operation: Any) -> Any:
        import triton.language as tl

        result = compute(builder, left, right, operation)
        return TensorHandle(result.data, tl.int1) if result.data.dtype == bool else result

    GridExecutor.__call__, InterpreterBuilder.binary_op = run_with_scalar_loops, compute_bool
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that there is no GPU
        importlib.import_module("fla.ops.gla")
    return True


def _scalars(*bounds: Any) -> Iterator[Any]:
    """Iterates like `range` in Triton's compiler: over int32 scalars."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    for i in builtins.range(*map(int, bounds)):
        yield tl.tensor(TensorHandle(np.array([i], np.int32), tl.int32), tl.int32)


def report(record: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    header = ("op", "K = V", "of", "launches", "forward", "backward", "sum", "/ compulsory", "requested")
    lines = [header, ("---", "---", "---", *["---:"] * 6)]
    for row in record["rows"]:
        cells: tuple[str, ...] = ("absent",) * 6
        if row["bytes"] is not None:
            numbers = (f"{row[name]:,.0f}" for name in ("forward", "backward", "bytes"))
            ratio = f"{row['bytes'] / row['compulsory']:.2f}"
            cells = (row["launches"], *numbers, ratio, f"{row['requested']:,.0f}")
        lines.append((row["op"], row["width"], row["who"], *cells))
    sizes = record["sizes"]
    return "\n".join(
        [
            f"Bytes per token and head, bf16, B={sizes['B']} T={sizes['T']} H={sizes['H']}; launches of Triton's +",
            "torch operations, forward and backward.\n",
            *(f"| {' | '.join(map(str, line))} |" for line in lines),
            "",
        ]
    )


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ours, theirs = (
        next(row["bytes"] for row in rows if (row["op"], row["who"], row["width"]) == ("hgrn2", who, 128))
        for who in ("mixerzoo", "flash-linear-attention")
    )
    bounds: list[tuple[str, float | None, str, float]] = [
        ("hgrn2: bytes per token and head, K=V=128, bf16, both passes", ours, "<=", TARGET),
        ("flash-linear-attention's bytes / ours", None if theirs is None else theirs / ours, ">=", 5.0),
    ]
    return [
        {"claim": what, "measured": value, "bound": f"{sign} {bound:g}",
         "holds": None if value is None else value <= bound if sign == "<=" else value >= bound}
        for what, value, sign, bound in bounds
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, to see that it runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON")
    arguments = parser.parse_args()
    sizes = SMOKE if arguments.smoke else Sizes()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # numpy's, of values that mean nothing here
    installed = peer_in_interpreter()
    rows = []
    for width in reversed(sizes.widths):
        for op, who, function, names in CONTENDERS:
            print(f"\r\033[K{op} of {who}, K=V={width}", end="", file=sys.stderr, flush=True)
            if who != "mixerzoo" and not installed:
                rows.append({"op": op, "who": who, "width": width, "bytes": None})
                continue
            moved = measure(function(make_inputs(names, sizes, width), sizes.B * sizes.T * sizes.H))
            rows.append(row(op, who, width, moved))
    print("\r\033[K", end="", file=sys.stderr)
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "smoke": arguments.smoke,
        "provenance": provenance(sys.argv),
        "triton": installed_version("triton"),
        "peers": {package: installed_version(package) for package in ("flash-linear-attention", "fla-core")},
        "sizes": asdict(sizes),
        "claims": [] if arguments.smoke else claims(rows),
        "rows": rows,
    }
    print(report(record))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
