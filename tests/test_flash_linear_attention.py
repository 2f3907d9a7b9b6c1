"""The backend `fla` says why it can't run, and passes arguments to flash-linear-attention's kernels as they mean them.

Its kernels need a GPU, so that functions of ours, with its signatures and conventions, stand in for them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mixerzoo.kernels import flash_linear_attention
from mixerzoo.kernels.dispatch import Backend
from mixerzoo.kernels.gated_linear_attention import gated_linear_attention
from mixerzoo.kernels.gated_scan import gated_scan
from mixerzoo.kernels.hgrn2 import hgrn2
from mixerzoo.kernels.sampling import DOCUMENTS

from .tolerances import assert_close

OPS = {"gated_scan": gated_scan, "gated_linear_attention": gated_linear_attention, "hgrn2": hgrn2}


def chunk_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    assert q.dtype == k.dtype == v.dtype and q.shape == k.shape == g.shape
    assert initial_state is None or initial_state.dtype == torch.float32
    assert g.isfinite().all() and not state_v_first
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    options = {"initial_state": initial_state, "cu_seqlens": cu_seqlens, "backend": "torch"}
    y, state = gated_linear_attention(q, k, v, g, scale=scale, **options)
    return y, state if output_final_state else None


def chunk_simple_gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
    assert g.shape == q.shape[:3]
    return chunk_gla(q, k, v, g[..., None].expand(q.shape), **options)


def fused_recurrent_hgrn(
    x: Tensor,
    g: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    h, state = gated_scan(x, g, initial_state=initial_state, cu_seqlens=cu_seqlens, backend="torch")
    return h, state.to(x.dtype) if output_final_state else None


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a package `fla` that takes tensors on the CPU."""
    for name in ("fla", "fla.ops", "fla.ops.gla", "fla.ops.simple_gla", "fla.ops.hgrn"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for function in (chunk_gla, chunk_simple_gla, fused_recurrent_hgrn):
        module = {"chunk_gla": "gla", "chunk_simple_gla": "simple_gla", "fused_recurrent_hgrn": "hgrn"}
        setattr(sys.modules[f"fla.ops.{module[function.__name__]}"], function.__name__, function)
    for op in OPS:
        backends = import_module(f"mixerzoo.kernels.{op}.op").BACKENDS
        able = tuple(Backend(backend.name, backend.run) for backend in backends)
        monkeypatch.setattr(f"mixerzoo.kernels.{op}.op.BACKENDS", able)


def outputs_and_gradients(op: str, inputs: dict[str, Any], backend: str) -> dict[str, Tensor]:
    leaves = {
        name: x.clone().requires_grad_()
        for name, x in inputs.items()
        if isinstance(x, Tensor) and x.is_floating_point()
    }
    results = OPS[op](**inputs | leaves, backend=backend)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in results]
    gradients = torch.autograd.grad(results, list(leaves.values()), cotangents)
    named = zip(("y", "final_state", *leaves), (*results, *gradients), strict=True)
    return dict(named)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"initial_state": False},
        {"direction": "reverse"},
        {"direction": "both"},
        {"direction": "both", "initial_state": False},
        {"cu_seqlens": DOCUMENTS},
        {"cu_seqlens": DOCUMENTS, "direction": "both"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("op", "own"),
    [
        ("gated_scan", {}),
        ("gated_scan", {"decay": "closed"}),
        ("gated_linear_attention", {}),
        ("gated_linear_attention", {"decay": "closed"}),
        ("gated_linear_attention", {"gate_per_head": True}),
        ("hgrn2", {}),
        ("hgrn2", {"gamma": 0.0, "logits": (-30.0, 0.0, 30.0, 1e4)}),
    ],
    ids=str,
)
@pytest.mark.usefixtures("peer")
def test_the_peer_computes_the_same(op: str, own: dict[str, Any], arguments: dict[str, Any]) -> None:
    cases = import_module(f"mixerzoo.kernels.{op}.cases")
    inputs = cases.make_inputs(**own, **arguments, dtype=torch.float32)
    assert_close(outputs_and_gradients(op, inputs, "fla"), outputs_and_gradients(op, inputs, "reference"))


@pytest.mark.parametrize("activation", ["none", "silu", "sigmoid"])
@pytest.mark.usefixtures("peer")
def test_the_activation_comes_before_the_peer(activation: str) -> None:
    cases = import_module("mixerzoo.kernels.hgrn2.cases")
    inputs = cases.make_inputs(dtype=torch.float32) | {"q_activation": activation}
    assert_close(outputs_and_gradients("hgrn2", inputs, "fla"), outputs_and_gradients("hgrn2", inputs, "reference"))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.usefixtures("peer")
def test_the_peers_states_are_fp32(op: str) -> None:
    inputs = import_module(f"mixerzoo.kernels.{op}.cases").make_inputs(dtype=torch.bfloat16)
    y, state = OPS[op](**inputs, backend="fla")
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32


@pytest.mark.parametrize("op", OPS)
def test_a_cpu_is_named(op: str) -> None:
    inputs = import_module(f"mixerzoo.kernels.{op}.cases").make_inputs(dtype=torch.float32)
    listed = "reference: can run; torch: can run; triton: .+; fla: needs a GPU, got tensors on cpu"
    with pytest.raises(ValueError, match=f"backend 'fla' can't run {op} here. {listed}"):
        OPS[op](**inputs, backend="fla")


@pytest.mark.parametrize(
    ("tensor", "installed", "reason"),
    [
        ({}, True, None),
        ({"dtype": torch.float64}, True, "no torch.float64; remedy: torch.float32"),
        (
            {},
            False,
            "flash-linear-attention isn't installed; remedy: pip install flash-linear-attention",
        ),
        ({"shape": (1, 1, 1, 257)}, True, "K and V up to 256, got 257 and 257"),
    ],
)
def test_what_the_peer_cannot_do_is_named(
    monkeypatch: pytest.MonkeyPatch, tensor: dict[str, Any], installed: bool, reason: str | None
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    on_gpu: Any = SimpleNamespace(
        **{"device": torch.device("cuda"), "dtype": torch.float32, "shape": (1, 1, 1, 1), **tensor}
    )
    assert flash_linear_attention.why_not_attention(on_gpu, on_gpu, on_gpu) == reason


def test_the_peer_has_no_complex_scan() -> None:
    assert flash_linear_attention.why_not_scan(torch.zeros(1, 1, 1, dtype=torch.complex64)) == "no complex scan"
