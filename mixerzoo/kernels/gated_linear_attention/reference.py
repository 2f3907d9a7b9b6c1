"""Gated linear attention as the papers write it: one token after the other. The specification of the op."""

from __future__ import annotations

from torch import Tensor

from ..heads import shared
from ..token_loop import causal_loop


def recurrent_step(q: Tensor, k: Tensor, v: Tensor, f: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Computes `S = Diag(f) S + k v^T`, `y = q S` for one token: q, k, f [B,H,K], v [B,H,V], state [B,H,K,V].

    k, v and f may have fewer heads than the state, and q more or fewer: see `heads`."""
    heads = state.shape[1]
    k, v, f = (shared(x, heads, axis=1) for x in (k, v, f))
    state = f[..., None] * state + k[..., None] * v[..., None, :]
    q = shared(q, max(q.shape[1], heads), axis=1)
    read = q.unflatten(1, (heads, -1))  # [B,heads of state,readers of each,K]
    return (read[..., None] * state[:, :, None]).sum(-2).flatten(1, 2), state


def reference(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, initial_state: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    return causal_loop(recurrent_step, (q, k, v, log_f.exp()), initial_state, cu_seqlens)
