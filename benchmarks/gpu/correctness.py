"""Our kernels on the device against the token loop in fp64: outputs, states and every gradient, in three precisions.

A kernel may err twice as much as the token loop with inputs and outputs of that precision, plus a few roundings, in
the root mean square: the tests' budget, read from `tests/tolerances.py`. An fp32 result of half-precision inputs has
one rounding to bf16 besides, where the matrix unit made it: its operands are bf16, and the token loop has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from measure import LATE, Meter, attempt, gradients, say
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
COMMON: tuple[dict[str, Any], ...] = (
    {},
    {"direction": "reverse"},
    {"direction": "both"},
    {"initial_state": False},
    {"cu_seqlens": DOCUMENTS},
    {"cu_seqlens": DOCUMENTS, "direction": "both"},
)
HEADS: tuple[dict[str, Any], ...] = ({"T": 1}, {"K": 128, "V": 128}, {"K": 40, "V": 72}, {"K": 256, "V": 256, "T": 70})
OWN: dict[str, tuple[dict[str, Any], ...]] = {
    "hgrn2": (*HEADS, {"gamma": 0.0, "logits": (-30.0, 0.0, 30.0)}),
    "gated_linear_attention": (*HEADS, {"gate_per_head": True}, {"decay": "closed"}),
    "gated_scan": ({"T": 1}, {"complex": True}, {"complex": True, "direction": "both"}, {"decay": "closed"}),
}


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
    """A row for each: the tensor that comes closest to its budget, or exceeds it most."""
    for one in todo:
        row = {"op": one.op, "case": one.case, "dtype": one.precision}
        worst, error = (None, LATE) if meter.late else attempt(lambda one=one: _worst(one, backend, meter))
        say(f"correctness {one}: {error or worst}")
        yield row | (worst or {}) | {"error": error}


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
    placed = {name: x.detach().to(device) if isinstance(x, Tensor) else x for name, x in inputs.items()}
    leaves = {
        name: x.requires_grad_()
        for name, x in placed.items()
        if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())
    }
    results = OPS[op](**placed, backend=backend)
    generator = torch.Generator().manual_seed(1)
    cotangents = [
        torch.randn(y.shape, generator=generator, dtype=torch.float64).to(device, torch.bfloat16).to(y.dtype)
        for y in results
    ]
    found = gradients(results, list(leaves.values()), cotangents)
    return dict(zip(("y", "final state", *(f"d {name}" for name in leaves)), (*results, *found), strict=True))


def _exact(x: Any) -> Any:
    if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
        return x
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def _rms(x: Tensor) -> float:
    return float(x.detach().abs().double().square().mean().sqrt())
