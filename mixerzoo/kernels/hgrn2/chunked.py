"""HGRN2 in plain torch: gate and key from the logits, then the chunked gated linear attention."""

from __future__ import annotations

from torch import Tensor

from ..gated_linear_attention.chunked import chunked_with_gates


def chunked(
    q: Tensor, x: Tensor, v: Tensor, lower_bound: Tensor, initial_state: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    # Not k = 1 - f: for an open gate that difference keeps no digit of k.
    k = (1 - lower_bound) * (-x).sigmoid()
    f = lower_bound + (1 - lower_bound) * x.sigmoid()
    return chunked_with_gates(q, k, v, f, initial_state, cu_seqlens)
