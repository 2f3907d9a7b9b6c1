"""The public softmax attention: equation, shapes, checks, choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import Backend, resolve
from ..packing import documents
from ..validation import check_shape, number_of_sequences
from .reference import reference
from .sdpa import sdpa

BACKENDS = (Backend("torch", sdpa), Backend("reference", reference))


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    query_position: Tensor | None = None,
    key_position: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """`y_t = sum_s softmax_s(scale q_t k_s) v_s` over the keys s that query t may see (arXiv:1706.03762, eq. 1).

    O(T S) time. O(T + S) memory without window, positions and packing where torch has a fused kernel, else O(T S).

    Args:
        q: [B,T,H,K].
        k, v: [B,S,G,K] and [B,S,G,V]; the G kv heads divide the H query heads.
        scale: K^-0.5 by default.
        causal: only keys at positions up to the query's.
        window: only keys less than `window` positions away.
        query_position, key_position: [B or 1,T] and [B or 1,S] int64; the index by default, -1 is a slot without key.
        cu_seqlens: [N+1] integers, N documents packed into one row (B=1, S=T); no attention across.
        backend: see `kernels.dispatch`.

    Returns:
        [B,T,H,V] in q's dtype; zero for a query that sees no key.

    Raises ValueError for inconsistent shapes and for a backend that can't run."""
    T, S, K = _dimensions(q, k, v)
    if (query_position is None) != (key_position is None):
        raise ValueError("query_position and key_position go together; got one of them; remedy: give both or neither")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}; remedy: None for no window")
    number_of_sequences(q, cu_seqlens)
    if query_position is None and T != S:
        raise ValueError(f"q and k have T={T} and S={S}; remedy: give query_position and key_position")
    scale = K**-0.5 if scale is None else scale
    chosen = resolve("softmax_attention", BACKENDS, backend)
    if query_position is None and window is None and cu_seqlens is None:
        return chosen.run(q, k, v, scale, None, causal).to(q.dtype)

    if query_position is None or key_position is None:
        query_position = key_position = torch.arange(T, device=q.device)[None]
    query_position, key_position = query_position[:, :, None], key_position[:, None, :]
    allowed = key_position >= 0  # [B or 1,1,S], and [B or 1,T,S] where it depends on the query
    if causal:
        allowed = allowed & (key_position <= query_position)
    if window is not None:
        allowed = allowed & (key_position > query_position - window)
    if window is not None and not causal:
        allowed = allowed & (key_position < query_position + window)
    if cu_seqlens is not None:
        document = documents(cu_seqlens, T).document
        allowed = allowed & (document[:, None] == document)
    return chosen.run(q, k, v, scale, allowed, causal).to(q.dtype)


def _dimensions(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, int, int]:
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4 or 0 in q.shape or 0 in k.shape:
        raise ValueError(
            "q, k, v must be [B,T,H,K], [B,S,G,K], [B,S,G,V] with every size at least 1, "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    (B, T, H, K), (_, S, G, _) = q.shape, k.shape
    check_shape("k", k, "[B,S,G,K]", (B, S, G, K))
    check_shape("v", v, "[B,S,G,V]", (B, S, G, v.shape[-1]))
    if H % G:
        raise ValueError(f"the {G} kv heads must divide the {H} query heads")
    return T, S, K
