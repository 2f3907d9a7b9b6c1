"""The backend `fla`: recurrent ops on the kernels of flash-linear-attention, where it is installed.

`auto` never picks it; it is there to compare with. Its kernels run causally, so that the other directions flip the
sequence; gates of -inf, which would be NaN in them, become finite ones that forget as thoroughly.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from .heads import with_equal_heads
from .pointwise import ACTIVATIONS, bounded_gate
from .recurrence import Walk, directed, run_recurrence, without_autocast

FORGETS_ALL = -110.0  # exp is 0 in fp32; any lower, and the sums of gates in a chunk would lose digits


def why_not_attention(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Gives the reason why flash-linear-attention can't run gated linear attention or HGRN2 on these tensors."""
    if q.shape[-1] > 256 or v.shape[-1] > 256:
        return f"K and V up to 256, got {q.shape[-1]} and {v.shape[-1]}"
    return _why_not(q, k, v)


def why_not_scan(x: Tensor) -> str | None:
    """Gives the reason why flash-linear-attention can't run the gated scan on this tensor."""
    return "no complex scan" if x.is_complex() else _why_not(x)


def _why_not(*tensors: Tensor) -> str | None:
    if tensors[0].device.type != "cuda":
        return f"needs a GPU, got tensors on {tensors[0].device.type}"
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        return "no torch.float64; remedy: torch.float32"
    if importlib.util.find_spec("fla") is None:
        return "flash-linear-attention isn't installed; remedy: pip install flash-linear-attention"
    return None


def run_hgrn2(
    q: Tensor,
    logits: Tensor,
    v: Tensor,
    lower_bound: Tensor,
    scale: float,
    q_activation: str,
    walk: Walk,
) -> tuple[Tensor, Tensor]:
    """Forms gates in torch and fp32, then runs `chunk_gla`: as its layer does, but `k = 1 - exp(log f)` isn't a
    difference.

    Gradients travel through log f: where f is near 0, rounding reaches the lower bound, and where f is 0, nothing.
    """
    with without_autocast(q.device):
        k, log_f = bounded_gate(logits, lower_bound)
        q = ACTIVATIONS[q_activation](q)
    return run_gated_linear_attention(q, k, v, log_f, scale, walk)


def run_gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    scale: float,
    walk: Walk,
) -> tuple[Tensor, Tensor]:
    """Runs `chunk_gla`, or `chunk_simple_gla` where a head has one gate; q and k in v's dtype, gates and state in fp32.

    It knows no shared heads: tensors with fewer are repeated."""

    def form(
        q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, state: Tensor, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = {"scale": scale, "initial_state": state, "cu_seqlens": cu_seqlens}
        if log_f.shape[-1] == 1:
            from fla.ops.simple_gla import chunk_simple_gla

            return chunk_simple_gla(q, k, v, g=log_f.squeeze(-1), output_final_state=True, **options)
        from fla.ops.gla import chunk_gla

        return chunk_gla(q, k, v, log_f, output_final_state=True, **options)

    state = walk.initial_state
    state = v.new_zeros(walk.state_shape, dtype=torch.float32) if state is None else state.float()
    inputs = (q.to(v.dtype), k.to(v.dtype), v, log_f.float().clamp(min=FORGETS_ALL))

    def run(x: tuple[Tensor, ...], walk: Walk) -> tuple[Tensor, Tensor]:
        return directed(form, walk.direction, x, (), walk.initial_state, walk.cu_seqlens)

    with without_autocast(q.device):
        return with_equal_heads(run, inputs, walk._replace(initial_state=state))


def run_gated_scan(
    x: Tensor,
    log_f: Tensor,
    theta: Tensor | None,
    walk: Walk,
) -> tuple[Tensor, Tensor]:
    """Runs `fused_recurrent_hgrn`, in fp32 for the final state; `chunk_hgrn` drops the gradients of both states."""

    def form(x: Tensor, log_f: Tensor, state: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
        from fla.ops.hgrn import fused_recurrent_hgrn

        return fused_recurrent_hgrn(x, log_f, initial_state=state, output_final_state=True, cu_seqlens=cu_seqlens)

    return run_recurrence(form, (x, log_f), (), walk, dtype=x.dtype)
