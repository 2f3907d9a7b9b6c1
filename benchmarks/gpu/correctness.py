"""Compares our kernels with the token loop in fp64: outputs, states and every gradient, in three precisions.

A kernel's root mean square error may be twice that of the token loop in that precision, plus a few roundings. This is
the tests' budget, read from `tests/tolerances.py`. An fp32 result of half-precision inputs has one more rounding, to
bf16, if the matrix unit made it. Its operands are bf16; the token loop has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from measure import LATE, Meter, attempt, capture, gradients, say
from torch import Tensor

from mixerzoo.kernels.gated_linear_attention import gated_linear_attention
from mixerzoo.kernels.gated_scan import gated_scan
from mixerzoo.kernels.hgrn2 import hgrn2
from tests.tolerances import BUDGET, ROUNDINGS

OPS: dict[str, Callable[..., Any]] = {
    "hgrn2": hgrn2,
    "gated_linear_attention": gated_linear_attention,
    "gated_scan": gated_scan,
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MATRIX_OPS = ("hgrn2", "gated_linear_attention")
OPERAND = torch.finfo(torch.bfloat16).eps / 2  # the most that rounding to bf16 changes a number by, relatively
DOCUMENTS = (0, 0, 1, 64, 64, 130, 250)
OTHER_DOCUMENTS = (0, 7, 7, 8, 100, 249, 250)
COMMON: tuple[dict[str, Any], ...] = (
    {},
    {"direction": "reverse"},
    {"direction": "both"},
    {"initial_state": False},
    {"cu_seqlens": DOCUMENTS},
    {"cu_seqlens": DOCUMENTS, "direction": "both"},
)
HEADS: tuple[dict[str, Any], ...] = (
    {"T": 1},
    {"K": 128, "V": 128},
    {"K": 40, "V": 72},
    {"K": 33, "V": 33, "direction": "both"},
    {"K": 256, "V": 256, "T": 70},
)
OWN: dict[str, tuple[dict[str, Any], ...]] = {
    "hgrn2": (*HEADS, {"gamma": 0.0, "logits": (-30.0, 0.0, 30.0)}),
    "gated_linear_attention": (*HEADS, {"gate_per_head": True}, {"decay": "closed"}),
    "gated_scan": ({"T": 1}, {"complex": True}, {"complex": True, "direction": "both"}, {"decay": "closed"}),
}


CAPTURED: tuple[dict[str, Any], ...] = ({}, {"direction": "both"}, {"cu_seqlens": DOCUMENTS}, {"initial_state": False})


@dataclass(frozen=True)
class Check:
    op: str
    case: dict[str, Any]
    dtype: torch.dtype

    @property
    def precision(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return f"{self.op} {self.case} {self.precision}"


def checks(*, smoke: bool) -> list[Check]:
    return [
        Check(op, case, dtype) for op in OPS for case in (*COMMON, *OWN[op])[: 2 if smoke else None] for dtype in DTYPES
    ]


def check(meter: Meter, backend: str, todo: list[Check]) -> Iterator[dict[str, Any]]:
    """Yields a row for each check: the tensor that comes closest to its budget, or exceeds it most."""
    for one in todo:
        row = {"op": one.op, "case": one.case, "dtype": one.precision}
        worst, error = (None, LATE) if meter.late else attempt(lambda one=one: _worst(one, backend, meter))
        say(f"correctness {one}: {error or worst}")
        yield row | (worst or {}) | {"error": error}


def check_captured(meter: Meter, backend: str) -> Iterator[dict[str, Any]]:
    """Yields a row for each op and case: both passes, replayed from a CUDA graph, are bit for bit those without one.

    The replay has inputs that the graph wasn't captured with. If they are packed, the documents' lengths differ too. A
    CPU has no graphs, so the passes run again.
    """
    for op, case in ((op, case) for op in OPS for case in CAPTURED[: 1 if meter.smoke else None]):
        row = {"op": op, "case": case | {"captured": True}, "dtype": "bfloat16"}
        replay = partial(_replayed, op, case, backend, meter)
        same, error = (None, LATE) if meter.late else attempt(replay)
        say(f"captured {op} {case}: {error or ('the same' if same else 'differs')}")
        yield row | {"ok": bool(same), "error": error}


def _replayed(op: str, case: dict[str, Any], backend: str, meter: Meter) -> bool:
    sizes = ({"D": 70} if op == "gated_scan" else {"K": 64, "V": 64}) | ({} if "cu_seqlens" in case else {"T": 300})
    make = import_module(f"mixerzoo.kernels.{op}.cases").make_inputs
    inputs, others = (_placed(make(**sizes | case, dtype=torch.bfloat16, seed=n), meter.device) for n in (0, 1))
    if "cu_seqlens" in case:
        others["cu_seqlens"] = torch.tensor(OTHER_DOCUMENTS).to(others["cu_seqlens"])
    expected, cotangents = _differentiated(op, others, backend)
    replayed: dict[str, Tensor] = {}

    def run() -> None:
        replayed.update(_differentiated(op, inputs, backend, cotangents)[0])

    graph = capture(run) if meter.cuda else None
    for name, x in others.items():
        if isinstance(x, Tensor):
            inputs[name].copy_(x)
    graph.replay() if graph else run()
    return all(torch.equal(replayed[name], x) for name, x in expected.items())


def _worst(check: Check, backend: str, meter: Meter) -> dict[str, Any]:
    op, dtype = check.op, check.dtype
    sizes = {"D": 70} if op == "gated_scan" else {"K": 64, "V": 64}
    length = {} if "cu_seqlens" in check.case else {"T": 20 if meter.smoke else 200}
    inputs = import_module(f"mixerzoo.kernels.{op}.cases").make_inputs(**sizes | length | check.case, dtype=dtype)
    oracle = _run(op, {name: _exact(x) for name, x in inputs.items()}, "reference", torch.device("cpu"))
    reference = _run(op, inputs, "reference", torch.device("cpu"))
    actual = _run(op, inputs, backend, meter.device)
    rows = []
    for name, exact in oracle.items():
        if actual[name].dtype != reference[name].dtype:
            raise TypeError(f"{name} is {actual[name].dtype}, expected {reference[name].dtype}")
        roundings = ROUNDINGS * torch.finfo(reference[name].dtype).eps
        if op in MATRIX_OPS and torch.finfo(dtype).bits < torch.finfo(reference[name].dtype).bits:
            roundings += OPERAND
        budget = BUDGET * (_rms(reference[name] - exact) + roundings * _rms(exact))
        error = _rms(actual[name].cpu() - exact)
        rows.append({"tensor": name, "rms_error": error, "budget": budget, "ok": bool(error <= budget)})
    return max(rows, key=lambda row: (not row["ok"], row["rms_error"] / max(row["budget"], 1e-300)))


def _run(op: str, inputs: dict[str, Any], backend: str, device: torch.device) -> dict[str, Tensor]:
    return _differentiated(op, _placed(inputs, device), backend)[0]


def _placed(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: x.detach().to(device) if isinstance(x, Tensor) else x for name, x in inputs.items()}


def _differentiated(
    op: str, inputs: dict[str, Any], backend: str, cotangents: list[Tensor] | None = None
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Returns results and all gradients by name, and their cotangents: random, unless given."""
    leaves = {
        name: x.detach().requires_grad_()
        for name, x in inputs.items()
        if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())
    }
    results = OPS[op](**inputs | leaves, backend=backend)
    if cotangents is None:
        generator = torch.Generator().manual_seed(1)
        cotangents = [
            torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device, torch.bfloat16).to(y.dtype)
            for y in results
        ]
    found = gradients(results, list(leaves.values()), cotangents)
    names = "y", "final state", *(f"d {name}" for name in leaves)
    return dict(zip(names, (*results, *found), strict=True)), cotangents


def _exact(x: Any) -> Any:
    if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
        return x
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def _rms(x: Tensor) -> float:
    return float(x.detach().abs().double().square().mean().sqrt())
