"""Softmax attention as a loop over queries. The specification of the op."""

from __future__ import annotations

import torch
from torch import Tensor


def reference(q: Tensor, k: Tensor, v: Tensor, scale: float, allowed: Tensor | None, causal: bool) -> Tensor:
    """q: [B,T,H,K], k: [B,S,G,K], v: [B,S,G,V], G divides H; allowed: bool, broadcastable to [B,T,S]."""
    B, T, H, _ = q.shape
    S, groups = k.shape[1], k.shape[2]
    if allowed is None:
        allowed = torch.ones(T, S, dtype=torch.bool, device=q.device)
        allowed = allowed.tril(S - T) if causal else allowed
    allowed = allowed.expand(B, T, S)
    y = q.new_zeros(B, T, H, v.shape[-1])
    for b in range(B):
        for t in range(T):
            keys = allowed[b, t].nonzero().flatten()
            for h in range(H):
                if len(keys):
                    kv_head = h // (H // groups)
                    weights = (scale * (k[b, keys, kv_head] @ q[b, t, h])).softmax(0)
                    y[b, t, h] = weights @ v[b, keys, kv_head]
    return y
