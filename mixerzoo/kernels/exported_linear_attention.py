"""Gated linear attention as one graph for every length: what torch.export and ONNX get in place of the chunked form.

The chunked form walks through a number of chunks and segments that the length decides, so its graph is a length's own.
Here the chunks are an axis, and a product over that axis carries the state: with N = T/C chunks,

    inside a chunk      y  = A v,                                  A_ij = sum_c q_ic k_jc f_(j+1..i),c
    from chunk to chunk S_n = sum_(m<=n) f_(chunks m+1..n) U_m,    U_m  = (k * suffix)^T v,  U_-1 the initial state
    state entering it   y += (q * prefix) S_(n-1)

O(T C K + N^2 K V) time. Every decay is a sum of log gates over its own range, so that -inf is exact and no difference
of cumulative sums loses digits; nothing is written in place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .heads import shared

CHUNK = 16


def exported(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, initial_state: Tensor) -> tuple[Tensor, Tensor]:
    """q, k: [B,T,H,K], v: [B,T,H,V], log_f: [B,T,H,K or 1], initial_state: [B,H,K,V] -> y and the final state.

    Tensors with fewer heads are repeated here."""
    heads = max(q.shape[2], initial_state.shape[1])
    readers = heads // initial_state.shape[1]
    q, k, v, log_f = (shared(x, heads) for x in (q, k, v, log_f))
    initial_state = shared(initial_state, heads, axis=1)
    length = q.shape[1]
    chunks = length // CHUNK + 2  # never one: an axis of one would be a graph of its own
    padding = (0, 0, 0, 0, 0, chunks * CHUNK - length)
    q, k, v, log_f = (
        F.pad(x, padding).unflatten(1, (chunks, CHUNK)).permute(0, 3, 1, 2, 4) for x in (q, k, v, log_f)
    )  # [B,H,N,C,.]
    decay = _decays(log_f)
    scores = (q[..., :, None, :] * k[..., None, :, :] * decay).sum(-1)
    updates = torch.cat([initial_state[:, :, None], (k * decay[..., -1, :, :]).mT @ v], 2)
    carried = _decays(F.pad(log_f.sum(-2), (0, 0, 1, 0)))  # [B,H,N+1,N+1,K or 1]
    states = (carried.movedim(-1, 2) @ updates.movedim(-2, 2)).movedim(2, -2)
    y = scores @ v + (q * log_f.cumsum(-2).exp()) @ states[:, :, :chunks]
    # Taken by index: a slice would tie the graph to whether the length is a multiple of the chunk.
    tokens = torch.arange(length, device=y.device)
    return y.permute(0, 2, 3, 1, 4).flatten(1, 2).index_select(1, tokens), states[:, ::readers, chunks]


def _decays(log_f: Tensor) -> Tensor:
    """[...,L,K] -> [...,L,L,K]: entry i, j is the product of the gates j+1..i, zero for j > i."""
    place = torch.arange(log_f.shape[-2], device=log_f.device)
    later = (place[:, None] > place)[..., None]
    summed = torch.where(later, log_f[..., :, None, :], 0.0).cumsum(-3)
    return torch.where((place[:, None] >= place)[..., None], summed.exp(), 0.0)
