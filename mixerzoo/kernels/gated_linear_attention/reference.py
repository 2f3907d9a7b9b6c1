"""Gated linear attention as the papers write it: one token after the other. The specification of the op."""

from __future__ import annotations

import torch
from torch import Tensor

from mixerzoo.kernels.gated_scan.reference import sequences


def recurrent_step(q: Tensor, k: Tensor, v: Tensor, f: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """`S = Diag(f) S + k v^T`, `y = q S` for one token: q, k, f [...,K], v [...,V], state [...,K,V]."""
    state = f[..., None] * state + k[..., None] * v[..., None, :]
    return (q[..., None] * state).sum(-2), state


def reference(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, initial_state: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    f = log_f.exp()
    y: list[Tensor] = []
    final: list[Tensor] = []
    for steps in sequences((q, k, v, f), cu_seqlens):
        state = initial_state[len(final)]
        for q_t, k_t, v_t, f_t in steps:
            y_t, state = recurrent_step(q_t, k_t, v_t, f_t, state)
            y.append(y_t)
        final.append(state)
    return torch.stack(y).view(v.shape), torch.stack(final)
